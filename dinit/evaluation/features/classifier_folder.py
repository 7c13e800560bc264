"""Classifier folders of evaluation: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from dinit.files import write_atomically

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"

Classifier = TypeVar("Classifier", bound=nn.Module)


def save_classifier(model: nn.Module, config: Any, folder: str | Path) -> None:
    """Write both files, each whole or not at all. config: a dataclass."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / _WEIGHTS, save(tensors))
    write_atomically(folder / _CONFIG, json.dumps(asdict(config), indent=2).encode() + b"\n")


def read_classifier(
    folder: str | Path, make: Callable[[Mapping[str, Any]], Classifier], kind: str, module: str
) -> Classifier:
    """Classifier that `save_classifier` wrote, in evaluation mode and frozen.

    Args:
        folder: with both files.
        make: gives the network of a config.
        kind: "digits" or "glyphs", for the error message.
        module: its command makes such a folder, for the error message.

    Raises:
        ValueError: anything else in the folder.
    """
    folder = Path(folder)
    try:
        model = make(json.loads((folder / _CONFIG).read_text()))
        model.load_state_dict(load_file(folder / _WEIGHTS))
    except (OSError, AttributeError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{folder} holds no {kind} classifier ({error}); wanted: its {_CONFIG} and {_WEIGHTS}, "
            f"as `python -m {module} --out FOLDER` writes them"
        ) from error
    return model.eval().requires_grad_(False)
