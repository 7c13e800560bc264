"""From pictures to an autoencoder, to latents, to a network trained on them, and back to pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dinit.data import DATASETS
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.train import train
from dinit.pipelines.weights.encode import Options, encode
from dinit.training import Recipe, parse_recipe
from dinit.training.autoencoder import AutoencoderRecipe, reconstruction, train_autoencoder


def recipe(folder: Path) -> Recipe:
    return parse_recipe(f"""\
name: latent-digits
data: {{name: latents, path: {json.dumps(str(folder))}}}
backbone: {{name: dit, patch_size: 1, hidden_size: 32, depth: 2, num_heads: 2}}
process: flow
parameterization: velocity
optimizer: {{lr: 3e-3}}
ema: {{decay: 0.95}}
training: {{steps: 300, batch_size: 32, sample_every: 300, workers: 0, log_every: 300}}
sampling: {{sampler: euler, steps: 8, guidance: {{name: cfg, scale: 2.0}}}}
tracker: null
""")


@pytest.mark.slow
def test_from_an_autoencoder_of_ones_own_to_images(tmp_path: Path) -> None:
    """Train one, encode, train on the latents, generate through the decoder: all of it in one go."""
    train_digits, test_digits = (DATASETS.create("digits", split=split) for split in ("train", "test"))
    shape = AutoencoderRecipe(widths=(16, 16), latent_channels=4, steps=200, batch_size=16, learning_rate=5e-3)
    vae: Any = train_autoencoder(train_digits, shape)
    assert reconstruction(vae, test_digits)["psnr"] > 19  # the images are 10 dB from their mean
    vae.save_pretrained(tmp_path / "vae")
    cache = encode(tmp_path / "vae", "digits", tmp_path / "cache", Options(flips=False, workers=0), progress=False)
    assert cache.psnr is not None
    assert cache.psnr > 19
    result = train(recipe(cache.folder), tmp_path / "run", progress=False)
    (grid,) = (tmp_path / "run" / "samples").glob("step-00000300*.png")
    assert Image.open(grid).size == (623, 800)  # eight of each class, with names and a title
    pipe = Pipeline.from_pretrained(result.pipeline)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(list(range(10)) * 10, seed=0, output_type="raw").images
    assert images.shape == (100, 1, 8, 8)
    real = torch.stack([train_digits.image(i) for i in range(len(train_digits))])
    assert abs(float(images.mean() - real.mean())) < 0.1
    assert abs(float(images.std() / real.std()) - 1) < 0.2
    latents = pipe(list(range(10)) * 10, seed=0, output_type="latent").images
    assert (latents.mean(dim=(0, 2, 3)).abs() < 0.25).all()
    assert ((latents.std(dim=(0, 2, 3)) - 1).abs() < 0.25).all()
    torch.testing.assert_close(pipe.codec.decode(latents), images, rtol=1e-4, atol=1e-4)
    made = torch.stack([images[label::10].mean(0) for label in range(10)])
    wanted = torch.stack([real[train_digits.labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(made.flatten(1), wanted.flatten(1)).argmin(1)
    right = int((nearest == torch.arange(10)).sum())
    assert right >= 6  # the mean of what was made of a class is like that class, mostly; by chance 1
