"""Denoiser of a diffusers pipeline, for dinit's samplers and guidance; a diffusers scheduler as a sampler.

Trajectories end as everywhere in dinit: with the posterior mean at the last noisy time. diffusers' schedulers agree
where their last sigma is zero (final_sigmas_type = "zero"; DDIM with set_alpha_to_one and leading or trailing
spacing). For those that stop at the chain's first timestep instead ("sigma_min"; set_alpha_to_one = False), use
end="state" and a grid whose last time is that of this timestep. DPMSolverMultistepScheduler's last step is of first
order where the last sigma is zero, which is the posterior mean too; with "sigma_min" and fewer than 15 steps it is
of first order as well (lower_order_final), and differs from dinit's. EulerDiscreteScheduler with "linspace" or
"trailing" spacing starts from noise that is smaller by the factor sigma_t of the first time; initial_state= gives
that.
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
    """Make a denoiser of the network in a diffusers pipeline. Weights are shared with the pipeline.

    Args:
        pipe: An object with `unet` or `transformer`, and `scheduler`, whose config contains what the network was
            trained on (its sampling settings are not used).
        condition: For networks that take a text, the prompts as returned by the pipeline's encode_prompt: (N, L,
            D); or a mapping of the network's arguments, each of N rows, {"encoder_hidden_states": ..,
            "pooled_projections": ..}, in which a value may be a mapping again, {"added_cond_kwargs":
            {"text_embeds": .., "time_ids": ..}}. Label i is row i; a batch without labels is all rows in order. Or
            a callable, (B,) labels -> such rows, with num_classes.
        null_condition: One such row, (1, ...), of the empty or negative prompt; classifier-free guidance needs it.
        num_classes: The number of prompts, where condition is a callable.
        null_label: For UNet2DModel with classes: the row of its class table that was trained as the null class.
        process: In place of the process in the scheduler's config.
        parameterization: In place of the parameterization in the scheduler's config.
        t_max: The largest time, in (0, 1]; below 1 where process and parameterization are singular at pure noise.

    Returns:
        A denoiser. It predicts the posterior mean, as every denoiser of dinit.

    Raises:
        ValueError: the network or a setting of the scheduler is not covered, or an argument does not fit; the error
            names both classes.
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
        raise ValueError("variance_type = 'learned' is not covered; of learned variances only 'learned_range' is")
