"""Samples before the decoder in a safetensors file with its manifest, of a pipeline without autoencoder too."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dinit.contents import unfit
from dinit.files import user_path, write_atomically
from dinit.models.codec import Codec
from dinit.pipelines.generate import Generated, Pipeline
from dinit.pipelines.outputs.inputs import write_inputs
from dinit.pipelines.outputs.manifest import KEY, Manifest, describe

NAME = "latents"  # of the tensor


def save_latents(path: Path, pipe: Pipeline, generated: Generated) -> None:
    """Writes samples before the decoder, with their manifest as its metadata, and what they were given.

    Args:
        path: of the file, which is replaced.
        pipe: what generated them.
        generated: of output_type 'latent'.
    """
    latents = generated.images.detach().cpu().contiguous()
    picture = {"kind": NAME, "shape": list(latents.shape), "dtype": str(latents.dtype).removeprefix("torch.")}
    manifest = describe(pipe, generated).with_picture(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({NAME: latents}, {KEY: manifest.to_json()}))
    if generated.call.given is not None:
        write_inputs(path, generated.call.given.tensors())


def read_latents(path: str | Path) -> tuple[Tensor, Manifest]:
    """Latents that `dinit generate --latents` wrote; `pipe.codec.decode` makes images of them.

    Args:
        path: of the file.

    Returns:
        (B, C, h, w), as the network generates them, normalised as `manifest.codec` has it; and the record of the
        call.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, or damaged.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    wanted = "latents that `dinit generate --latents` wrote"
    try:
        with safe_open(path, "pt") as opened:
            text, names = (opened.metadata() or {}).get(KEY), list(opened.keys())
            if text is None or names != [NAME]:
                raise ValueError(f"{path} has no dinit manifest and a tensor {NAME!r}, wanted: {wanted}")
            latents = opened.get_tensor(NAME)
            config = json.loads(text)
    except SafetensorError as error:
        raise ValueError(unfit(path, wanted)) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the manifest in {path} is damaged: {error}") from error
    return latents, Manifest.from_config(config if isinstance(config, dict) else {}, path)


@torch.no_grad()
def decoded(codec: Codec, generated: Generated) -> Generated:
    """The images of latents, batch by batch as they were generated, so that they are those of output_type 'raw'.

    Args:
        codec: of the pipeline.
        generated: of output_type 'latent'.
    """
    batches = generated.images.split(generated.call.batch_size)
    return Generated(torch.cat([codec.decode(batch) for batch in batches]), generated.call, generated.nfe)
