"""Compatibility with several versions of torchvision and diffusers.

`ensure_torchvision` makes `import torchvision` possible where its compiled operators cannot be loaded.

The registry's torchvision wheel is built for CUDA. With a CPU-only torch its library does not load, and the
Python half then fails on import with `operator torchvision::nms does not exist`, because it registers shape
functions for two operators that were never declared. diffusers and torch-fidelity import torchvision, so they
fail with it. Declaring the two schemas is enough: nothing in dinit calls them. Where the compiled library does
load this module does nothing, so that a healthy installation keeps its own operators.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_alone = False
_light = False
_library: Any = None  # a torch.library.Library undoes its definitions when it is collected, so it is kept


def dtype_option(dtype: Any) -> dict[str, Any]:
    """The keyword by which this diffusers' `from_pretrained` takes a dtype; none for None."""
    if dtype is None or _light:
        return {}
    from diffusers.utils import deprecation_utils

    return {"dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}


def run_alone() -> None:
    """Note that this process runs one command of the command line, and no code of a user."""
    global _alone
    _alone = True


def without_diffusers() -> None:
    """Let networks and pipelines have the bases of `dinit.models.light`, which import nothing of diffusers.

    For commands that open a pipeline in pixels and generate. Nothing changes in a process that is not alone, or has
    imported diffusers already.
    """
    global _light
    _light = _light or (_alone and not {"diffusers", "dinit.models", "dinit.pipelines"} & set(sys.modules))


def is_light() -> bool:
    """Whether networks and pipelines have the bases of `dinit.models.light` in this process, not diffusers'."""
    return _light


def ensure_torchvision() -> bool:
    """Declare torchvision's missing operator schemas if, and only if, its compiled library cannot be loaded.

    Call before the first import of torchvision. Returns True where the schemas were declared by this call.
    """
    global _library
    if _library is not None or "torchvision" in sys.modules:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    if _compiled_operators_load(Path(spec.origin).parent):
        return False
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)
    return True


def _compiled_operators_load(package: Path) -> bool:
    """Whether the package's `_C` extension loads, tried the way torchvision itself does it."""
    import torch

    file = _compiled_file(package)
    if file is None:
        return False
    try:
        torch.ops.load_library(str(file))
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


def _compiled_file(package: Path) -> Path | None:
    """The extension's file; None where there is none."""
    files = (package / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((file for file in files if file.exists()), None)
