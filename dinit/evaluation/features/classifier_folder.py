"""Classifiers of evaluation: their folders, config.json and model.safetensors, and their training."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dinit.cards import CardMetadata, write_card
from dinit.files import user_path, write_atomically

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"

Classifier = TypeVar("Classifier", bound=nn.Module)


def save_classifier(model: nn.Module, config: Any, folder: str | Path) -> None:
    """Write both files, each whole or not at all. config: a dataclass."""
    folder = user_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / _WEIGHTS, save(tensors))
    write_atomically(folder / _CONFIG, json.dumps(asdict(config), indent=2).encode() + b"\n")
    write_card(folder, _card(model))


def _card(model: nn.Module) -> str:
    head = CardMetadata(("classification", "evaluation"), pipeline_tag="image-classification")
    name = type(model).__name__
    text = f"A classifier with which dinit evaluates images. `{name}.from_pretrained(FOLDER)` opens it."
    return f"{head.front_matter()}# {name}\n\n{text}\n"


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
    folder = user_path(folder)
    try:
        model = make(json.loads((folder / _CONFIG).read_text()))
        model.load_state_dict(load_file(folder / _WEIGHTS))
    except (OSError, AttributeError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{folder} holds no {kind} classifier ({error}); wanted: its {_CONFIG} and {_WEIGHTS}, "
            f"as `python -m {module} --out FOLDER` writes them"
        ) from error
    return model.eval().requires_grad_(False)


def fit(model: Classifier, loss_of_step: Callable[[int], Tensor], steps: int, learning_rate: float) -> Classifier:
    """Train by AdamW (weight decay 0.05) at a one-cycle rate; returns the model in evaluation mode and frozen."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    model.train()
    for step in range(steps):
        loss = loss_of_step(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def train_and_save(
    train: Callable[[int, int], Any], length: str, usual: int, accuracies: Callable[[Any], str]
) -> None:
    """Command line of a classifier's module: train it by (seed, length), save it, print its accuracies.

    length: the option for how long to train, "epochs" or "steps"; usual: its default.
    """
    parser = argparse.ArgumentParser(description="Train the classifier that evaluation uses.")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {_WEIGHTS} and {_CONFIG}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(f"--{length}", type=int, default=usual)
    options = parser.parse_args()
    started = time.perf_counter()
    model = train(options.seed, getattr(options, length))
    seconds = time.perf_counter() - started
    model.save_pretrained(options.out)
    print(f"{seconds:.0f} s; accuracy: {accuracies(model)}")
