"""The trained denoiser of a diffusers pipeline, for dinit's samplers and guidance; its scheduler as a sampler.

Trajectories end as everywhere in dinit: with the posterior mean at the last noisy level. diffusers' schedulers
agree where their last sigma is zero (final_sigmas_type = "zero"; DDIM with set_alpha_to_one and leading or trailing
spacing). Those that stop at the chain's first level instead ("sigma_min"; set_alpha_to_one = False) are met by
end="state" and a grid whose last time is that level's. DPMSolverMultistepScheduler's last step is of first order
where the last sigma is zero, which is the posterior mean too; with "sigma_min" and fewer than 15 steps it is of
first order as well (lower_order_final), and differs from dinit's. EulerDiscreteScheduler with "linspace" or
"trailing" spacing starts from noise that is smaller by the factor sigma_t of the first level; initial_state= "
"gives that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dinit.checkpoints.interop.networks import class_backbone
from dinit.checkpoints.interop.schedule import read_scheduler
from dinit.checkpoints.interop.scheduler_sampler import sampler_from_diffusers
from dinit.checkpoints.interop.text import Given, TextDenoiser, takes_text, text_backbone
from dinit.diffusion import BackboneDenoiser, Denoiser, Parameterization, Process

__all__ = ["check_variance", "denoiser_from_diffusers", "network_of", "sampler_from_diffusers"]


def denoiser_from_diffusers(
    pipe: Any,
    *,
    condition: Given | Callable[[Tensor], Given] | None = None,
    null_condition: Given | None = None,
    num_classes: int | None = None,
    null_label: int | None = None,
    process: Process | None = None,
    parameterization: Parameterization | None = None,
    t_max: float = 1.0,
) -> Denoiser:
    """The network in a diffusers pipeline, read as the posterior mean. Weights are shared with the pipeline.

    pipe: has `unet` or `transformer`, and `scheduler`, whose config says what the network was trained on (its
    rules of sampling are not used). process, parameterization: in place of what the scheduler says.
    null_label: for UNet2DModel with classes, the row trained as the null class. t_max: below 1 where the pair is
    singular at pure noise.

    condition: for networks that take a text, the prompts as the pipeline's encode_prompt gives them: (N, L, D), or
    a mapping of the network's arguments, each of N rows, {"encoder_hidden_states": .., "pooled_projections": ..},
    which may hold a mapping in turn, {"added_cond_kwargs": {"text_embeds": .., "time_ids": ..}}. Label i is row
    i; a batch given no labels is all the rows in order. Or a callable, (B,) labels -> such rows, with num_classes
    the number of prompts. null_condition: one such row, that of the empty or negative prompt, which
    classifier-free guidance needs.
    ValueError, with the network and the scheduler, for what is not understood.
    """
    network = network_of(pipe)
    owner = f"{type(network).__name__} with {type(pipe.scheduler).__name__}"
    try:
        if process is None or parameterization is None:
            read = read_scheduler(pipe.scheduler)
            process, parameterization = process or read[0], parameterization or read[1]
        check_variance(network, pipe.scheduler)
        if takes_text(network):
            if condition is None:
                raise ValueError("this network takes a text: give condition=, and null_condition= for guidance")
            backbone = text_backbone(network, condition, null_condition, num_classes)
            denoiser = TextDenoiser(backbone, process, parameterization, t_max)
            return denoiser if callable(condition) else denoiser.given(range(denoiser.num_classes))
        if condition is not None or null_condition is not None or num_classes is not None:
            raise ValueError("this network takes no text: leave out condition, null_condition and num_classes")
        return BackboneDenoiser(class_backbone(network, null_label), process, parameterization, t_max)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error


def network_of(pipe: Any) -> Any:
    """The pipeline's denoising network. ValueError where it has none, or two."""
    found = [name for name in ("unet", "transformer") if getattr(pipe, name, None) is not None]
    if len(found) != 1 or getattr(pipe, "scheduler", None) is None:
        raise ValueError(
            f"{type(pipe).__name__} must have a scheduler, and one of unet and transformer; found "
            f"{', '.join(found) or 'no network'}"
        )
    return getattr(pipe, found[0])


def check_variance(network: Any, scheduler: Any) -> None:
    """ValueError where the network's second half is a variance in another form than DDPM's learned range."""
    config = network.config
    kind = scheduler.config.get("variance_type")
    if config.get("out_channels") == 2 * config.get("in_channels", 0) and kind == "learned":
        raise ValueError("variance_type = 'learned' is not covered; a learned variance is read as 'learned_range'")
