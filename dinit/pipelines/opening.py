"""Pipeline methods that open one: of a folder, a run, the Hub, or diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import torch

from dinit.arguments import shown
from dinit.checkpoints.locating import is_own_class
from dinit.checkpoints.runs import origin
from dinit.compat import dtype_option, is_light
from dinit.devices import choose_device
from dinit.pipelines.diffusers_folder import is_diffusers_folder, read_diffusers_folder
from dinit.pipelines.loading import LoadOptions, check_folder, load_options, locate

if TYPE_CHECKING or not is_light():
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
else:
    from dinit.pipelines.light import DiffusionPipeline


class OpeningMethods(DiffusionPipeline):
    """A DiffusionPipeline whose folder is checked before anything is built."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """A shipped pipeline by name, a folder of one or of a training run, or a hub id, in this order.

        A folder of diffusers, unconditional or with classes (DDPM, DDIM, DiT), opens as it is; see
        `dinit.pipelines.diffusers_folder`. The folder is checked before anything is built; only safetensors are
        read.

        Args:
            pretrained_model_name_or_path: name, folder or hub id.
            device: where to put the pipeline: cpu, cuda, cuda:1, mps, or auto (a GPU where there is one); None is
                the CPU.
            dtype: of all networks; None is what was saved, and torch_dtype is another name for it.
            options: see LoadOptions.

        Raises:
            ValueError: a keyword that is none of these; a device that is not here; a missing, unexpected or
                mis-shaped tensor, by its name.
            FileNotFoundError: there is no such pipeline; the error lists where it was searched.
        """
        given, hub, dtype = load_options(options, dtype)
        device = _check_place(pretrained_model_name_or_path, device)
        folder = locate(pretrained_model_name_or_path, **hub)
        if is_diffusers_folder(folder):
            pipeline = cls(**read_diffusers_folder(folder, given | ({} if dtype is None else {"dtype": dtype})))
        else:
            parts = [name for name in ("backbone", "vae") if name in given]
            given["variant"] = check_folder(folder, given=parts, variant=given.get("variant"))
            if given.pop("null_label", None) is not None:
                raise ValueError(
                    "null_label is for folders of diffusers; a dinit pipeline has its null class recorded"
                )
            pipeline = super().from_pretrained(folder, **{**given, **dtype_option(dtype), "use_safetensors": True})
        pipeline.register_to_config(_name_or_path=str(origin(folder) or pretrained_model_name_or_path))
        return pipeline.to(device=device, dtype=dtype)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, but that the class is this one: no code of the folder is run.

        Args:
            args: as in diffusers.
            kwargs: as in diffusers.
        """
        loaded: Any = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if is_own_class(config):
            config["_class_name"] = "Pipeline"
        return loaded


def _check_place(name: Any, device: Any) -> Any:
    """The device, chosen. ValueError for what names no pipeline, and for a device that torch does not have."""
    if not isinstance(name, str | Path):
        raise ValueError(f"a pipeline is opened by its name, its folder or its hub id, got {shown(name)}")
    if isinstance(device, str):
        return choose_device(device)
    try:
        torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one of torch, as 'cpu', 'cuda' or 'cuda:1'; got {device!r}") from error
    return device
