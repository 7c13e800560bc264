"""Every option of every codec away from its default, as numbers.

A new option needs a row in OTHER.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from test_codec import IMAGES, tiny_vae

from dinit.models.codec import AutoencoderKLCodec, IdentityCodec

CODECS: dict[str, Any] = {"identity": IdentityCodec, "autoencoder-kl": AutoencoderKLCodec}
MEAN, STD = [0.5, -1.0, 2.0, 0.0], [0.5, 1.0, 2.0, 4.0]
OTHER: dict[tuple[str, str], dict[str, Any]] = {  # the options given, and what encode makes of z
    ("identity", "channels"): {"channels": 1},
    ("identity", "low"): {"low": -3.0},
    ("identity", "high"): {"high": 7.0},
    ("autoencoder-kl", "vae"): {},  # the plain one below
    ("autoencoder-kl", "scaling_factor"): {"scaling_factor": 2.0},
    ("autoencoder-kl", "shift_factor"): {"shift_factor": -0.5},
    ("autoencoder-kl", "latents_mean"): {"latents_mean": MEAN, "latents_std": STD},
    ("autoencoder-kl", "latents_std"): {"latents_mean": [0.0] * 4, "latents_std": STD},
}


def test_every_option_has_a_row() -> None:
    known = {(name, option) for name in CODECS for option in inspect.signature(CODECS[name]).parameters}
    assert known == set(OTHER)


@pytest.mark.parametrize(
    ("low", "high", "latents"), [(-3.0, 1.0, [-3.0, -1.0, 0.0, 1.0]), (-0.5, 2.0, [-0.5, 0.75, 1.375, 2.0])]
)
def test_a_range_of_pixels_about_any_middle(low: float, high: float, latents: list[float]) -> None:
    codec = IdentityCodec(1, low, high)
    images = torch.tensor([-1.0, 0.0, 0.5, 1.0]).view(1, 1, 2, 2)
    assert codec.encode(images).flatten().tolist() == latents
    torch.testing.assert_close(codec.decode(codec.encode(images)), images)


@pytest.mark.parametrize("option", [option for name, option in OTHER if name == "autoencoder-kl"])
@torch.no_grad()
def test_latents_are_what_the_options_say(option: str) -> None:
    vae: Any = tiny_vae()
    given = OTHER["autoencoder-kl", option]
    codec = AutoencoderKLCodec(copy.deepcopy(vae), **given)
    z = vae.encode(IMAGES).latent_dist.mean
    if "latents_std" in given:
        mean, std = (torch.tensor(given[key]).view(4, 1, 1) for key in ("latents_mean", "latents_std"))
        expected = (z - mean) / std
    else:  # the config has 0.18215 and 0.25
        expected = (z - given.get("shift_factor", 0.25)) * given.get("scaling_factor", 0.18215)
    torch.testing.assert_close(codec.encode(IMAGES), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codec.decode(expected), vae.decode(z).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_noise_is_scaled_by_the_standard_deviation() -> None:
    vae: Any = tiny_vae()
    codec, noise = AutoencoderKLCodec(copy.deepcopy(vae)), torch.ones(2, 4, 4, 6)
    distribution = vae.encode(IMAGES).latent_dist
    expected = (distribution.mean + (distribution.logvar / 2).exp() - 0.25) * 0.18215
    torch.testing.assert_close(codec.encode(IMAGES, noise), expected, rtol=1e-5, atol=1e-6)
