"""Discriminator guidance on the digits: train a discriminator on a shipped model's samples, then sample with it.

python examples/train_discriminator.py --steps 600 --images 1437
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from dinit import Pipeline
from dinit.data import DATASETS
from dinit.samplers import DDIM
from dinit.samplers.guidance import Discriminator
from dinit.training.discriminator import DiscriminatorRecipe, accuracy_by_time


def generate(pipe: Any, labels: Tensor, seed: int, guidance: Discriminator | None = None) -> Tensor:
    """One image a label, (N, 1, 8, 8), by 20 steps of DDIM."""
    denoiser = pipe.denoiser() if guidance is None else guidance.wrap(pipe.denoiser())
    noise = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return DDIM().sample(denoiser, noise, 20, labels=labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", default="digits-dico")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--images", type=int, default=1437, help="at most the size of the training split")
    parser.add_argument("--scale", type=float, default=1.0)
    given = parser.parse_args()

    pipe: Any = Pipeline.from_pretrained(given.pipeline)
    process = pipe.denoiser().process
    data = DATASETS.create("digits")
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: given.images].tolist()
    images = torch.stack([data.image(i) for i in rows])
    labels = torch.as_tensor(data.labels[rows])

    generated = generate(pipe, labels, seed=0)
    recipe = DiscriminatorRecipe(steps=given.steps)
    network = recipe.train(process, (images, labels), (generated, labels), num_classes=10)

    guidance = Discriminator(given.scale, network)
    before, after = generate(pipe, labels, seed=1), generate(pipe, labels, seed=1, guidance=guidance)
    for name, fresh in (("without", before), ("with", after)):
        shares = accuracy_by_time(network, process, (images, labels), (fresh, labels))
        print(f"{name:>7} guidance, accuracy:", ", ".join(f"t={t:g} {share:.0%}" for t, share in shares))


if __name__ == "__main__":
    main()
