"""Error messages for keywords and attributes of other libraries: what each is called in dinit."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dinit.registry import suggest

_TEXT = "dinit's pipelines take classes, not texts: labels=[207] or labels=['golden retriever']"
_NEGATIVE = "guidance={'name': 'negative', 'label': 3} guides away from a class"
_NULL = "classifier-free guidance uses the null class by itself; its scale is guidance= or guidance_scale="
_SIZE = "a backbone generates images of the size that it was trained on, see pipe.image_size"
_TIMES = "grid= takes a grid's name, or a tensor of decreasing times in [0, 1]; a number of steps is steps="
_NOISE = (
    "the initial noise of image k comes from the key (seed, k), see seed= and start_index=; to bring a tensor, run "
    "pipe.sampler.sample(pipe.denoiser(labels), initial_noise, steps)"
)
_CALLBACK = "callback_on_step_end= is called after every step, with one Step or with (pipe, i, t, kwargs)"
_SCHEDULER = "a scheduler goes into sampler=, or into pipe.scheduler for all calls"

CALL = {
    "prompt": _TEXT,
    "prompt_2": _TEXT,
    "prompt_embeds": _TEXT,
    "class_names": _TEXT,
    "negative_prompt": _NULL,
    "negative_prompt_2": _NULL,
    "negative_prompt_embeds": _NULL,
    "negative_class_labels": _NEGATIVE,
    "height": _SIZE,
    "width": _SIZE,
    "image_size": _SIZE,
    "timesteps": _TIMES,
    "sigmas": _TIMES,
    "times": _TIMES,
    "latents": _NOISE,
    "noise": _NOISE,
    "initial_noise": _NOISE,
    "num_images_per_prompt": "num_images= repeats one label, or is the number of images without labels",
    "num_samples": "num_images= repeats one label, or is the number of images without labels",
    "seeds": "seed= takes one number, or a list with one for each image",
    "scheduler": _SCHEDULER,
    "callback": _CALLBACK,
    "callback_steps": _CALLBACK,
    "callback_on_step_end_tensor_inputs": f"{_CALLBACK}; kwargs always has 'latents'",
    "use_clipped_model_output": "guidance='clip-x0' clips the posterior mean at every step",
    "guidance_rescale": "guidance={'name': 'cfg', 'scale': 4, 'rescale': 0.7} rescales",
    "cfg_scale": "guidance= or guidance_scale= is the scale of classifier-free guidance",
    "cfg": "guidance= or guidance_scale= is the scale of classifier-free guidance",
    "scale": "guidance= or guidance_scale= is the scale of classifier-free guidance",
    "num_steps": "steps= is the number of sampling steps",
    "n_steps": "steps= is the number of sampling steps",
    "y": "labels= takes class numbers or names",
    "classes": "labels= takes class numbers or names",
    "device": "pipe.to('cuda') moves the pipeline before the call",
    "dtype": "pipe.to(torch.bfloat16) converts the pipeline before the call",
    "torch_dtype": "pipe.to(torch.bfloat16) converts the pipeline before the call",
}
"""Keyword of a call in another library to what dinit has in its place."""

LOADING = {
    "scheduler": "assign it after opening: pipe.scheduler = scheduler",
    "sampler": "assign it after opening: pipe.sampler = sampler",
    "steps": "assign it after opening: pipe.steps = steps",
    "num_inference_steps": "assign it after opening: pipe.steps = steps",
    "guidance": "assign it after opening: pipe.guidance = guidance",
    "guidance_scale": "assign it after opening: pipe.guidance = scale",
    "grid": "assign it after opening: pipe.grid = grid",
    "unet": "the network is backbone=",
    "transformer": "the network is backbone=",
    "safety_checker": "a pipeline has a backbone and, on latents, a vae; leave it out",
    "custom_pipeline": "no code from a folder or a repository is run; leave it out",
    "trust_remote_code": "no code from a folder or a repository is run; leave it out",
}
"""Keyword of `from_pretrained` in diffusers to what dinit has in its place."""

ATTRIBUTES = {
    "unet": "the network is pipe.backbone",
    "transformer": "the network is pipe.backbone",
    "model": "the network is pipe.backbone",
    "network": "the network is pipe.backbone",
    "num_inference_steps": "the default number of steps is pipe.steps",
    "guidance_scale": "the default guidance is pipe.guidance; a number is the scale of CFG",
    "noise_scheduler": "pipe.scheduler takes a diffusers scheduler, pipe.sampler a sampler of dinit",
    "half": "pipe.to(torch.float16) converts the pipeline",
    "float": "pipe.to(torch.float32) converts the pipeline",
    "bfloat16": "pipe.to(torch.bfloat16) converts the pipeline",
    "cuda": "pipe.to('cuda') moves the pipeline",
    "cpu": "pipe.to('cpu') moves the pipeline",
    "eval": "a call puts the backbone into evaluation mode by itself",
    "tokenizer": _TEXT,
    "text_encoder": _TEXT,
    "safety_checker": "there is none; leave it out",
    "_interrupt": "raise an exception in callback_on_step_end to stop a call",
}
"""Attribute of a pipeline of diffusers to what dinit has in its place."""


def unknown_keywords(
    owner: str, unknown: Iterable[str], known: Collection[str], advice: dict[str, str]
) -> ValueError:
    """The error for keywords that a call does not have: a line for each.

    Args:
        owner: what was called, e.g. "a pipeline's call".
        unknown: the keywords, at least one.
        known: the keywords that it has, for the nearest name.
        advice: foreign keyword to what it is called in dinit.
    """
    lines = []
    for name in unknown:
        if name in advice:
            lines.append(f"{owner} has no keyword {name!r}: {advice[name]}")
        else:
            lines.append(f"{owner} has no keyword {name!r}{suggest(name, sorted(known))}")
    return ValueError("\n".join(lines))


def unknown_attribute(name: str, known: Collection[str]) -> AttributeError:
    """The error for an attribute that a pipeline does not have."""
    if name in ATTRIBUTES:
        return AttributeError(f"a dinit Pipeline has no attribute {name!r}: {ATTRIBUTES[name]}")
    return AttributeError(f"a dinit Pipeline has no attribute {name!r}{suggest(name, sorted(known))}")
