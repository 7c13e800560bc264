"""Codecs against diffusers' own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from reference import references, relative_error
from safetensors.torch import load_file, save_file

from dinit.models.codec import (
    AutoencoderKLCodec,
    IdentityCodec,
    normalization_in_config,
    open_autoencoder,
    per_channel,
)


def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.18215,
        shift_factor=0.25,
    ).eval()


IMAGES = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_identity_between_pixel_ranges() -> None:
    codec = IdentityCodec(1, 0.0, 1.0)
    images = torch.tensor([-1.0, 0.0, 0.5, 1.0]).reshape(1, 1, 2, 2)
    latents = codec.encode(images)
    assert latents.flatten().tolist() == [0.0, 0.5, 0.75, 1.0]
    assert torch.equal(codec.decode(latents), images)
    with pytest.raises(ValueError, match="low < high"):
        IdentityCodec(1, 1.0, 0.0)


def test_identity() -> None:
    codec = IdentityCodec(channels=3)
    assert torch.equal(codec.encode(IMAGES), IMAGES)
    assert torch.equal(codec.decode(IMAGES), IMAGES)
    assert codec.latent_shape(16, 24) == (3, 16, 24)
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\), got \(2, 1, 8, 8\)"):
        codec.encode(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="channels must be at least 1"):
        IdentityCodec(channels=0)


@torch.no_grad()
def test_encode_is_the_shifted_and_scaled_posterior() -> None:
    vae = tiny_vae()
    posterior = vae.encode(IMAGES).latent_dist
    codec = AutoencoderKLCodec(vae)
    assert codec.latent_shape(16, 24) == (4, 4, 6) == tuple(posterior.mean.shape[1:])
    expected = (posterior.mean - 0.25) * 0.18215
    torch.testing.assert_close(codec.encode(IMAGES), expected, rtol=1e-6, atol=1e-7)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(4))
    z = posterior.sample(generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(codec.encode(IMAGES, noise), (z - 0.25) * 0.18215, rtol=1e-5, atol=1e-6)
    assert (z - posterior.mean).abs().max() > 0.1  # the noise counts


@torch.no_grad()
def test_decode_undoes_scale_and_shift() -> None:
    vae = tiny_vae()
    z = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(5))
    expected = vae.decode(z).sample
    codec = AutoencoderKLCodec(vae)
    torch.testing.assert_close(codec.decode((z - 0.25) * 0.18215), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_given_factors_replace_those_of_the_config_which_stays() -> None:
    vae = tiny_vae()
    before = dict(vae.config)
    codec = AutoencoderKLCodec(vae, scaling_factor=2.0, shift_factor=0.0)
    plain = tiny_vae().encode(IMAGES).latent_dist.mean
    torch.testing.assert_close(codec.encode(IMAGES), 2 * plain, rtol=1e-6, atol=1e-7)
    AutoencoderKLCodec(vae, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    assert dict(vae.config) == before


def test_missing_shift_is_zero() -> None:
    vae = tiny_vae()
    vae.register_to_config(shift_factor=None)
    assert AutoencoderKLCodec(vae).shift_factor == 0.0


def test_autoencoder_stays_frozen_and_in_evaluation_mode() -> None:
    codec = AutoencoderKLCodec(tiny_vae().train()).train()
    assert not any(module.training for module in codec.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())


@torch.no_grad()
def test_half_precision_autoencoder_keeps_the_callers_dtype() -> None:
    codec = AutoencoderKLCodec(tiny_vae().to(torch.bfloat16))
    latents = codec.encode(IMAGES)
    images = codec.decode(latents)
    assert latents.dtype == images.dtype == torch.float32
    exact = AutoencoderKLCodec(tiny_vae()).encode(IMAGES)
    assert (latents - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_what_does_not_fit_is_refused() -> None:
    codec = AutoencoderKLCodec(tiny_vae())
    with pytest.raises(ValueError, match="multiples of 4, got 16 x 18"):
        codec.encode(torch.zeros(1, 3, 16, 18))
    with pytest.raises(ValueError, match=r"got \(1, 4, 16, 16\)"):
        codec.encode(torch.zeros(1, 4, 16, 16))
    with pytest.raises(ValueError, match="scaling_factor must be positive, got 0"):
        AutoencoderKLCodec(tiny_vae(), scaling_factor=0.0)


@torch.no_grad()
def test_the_published_autoencoder(parity_folder: Path) -> None:
    """Golden tensors of AutoencoderKL: posterior mean and decoded image, with no scaling factor applied."""
    files = [file for file in references(parity_folder) if file.name == "AutoencoderKL"]
    if not files:
        pytest.skip("the whole parity folder has one")
    for file in files:
        vae, given = AutoencoderKL(**file.arguments), file.tensors
        vae.load_state_dict(file.state)
        codec = AutoencoderKLCodec(vae, scaling_factor=0.5, shift_factor=0.1)
        mean = codec.encode(given["in.x"]) / 0.5 + 0.1
        assert relative_error(mean, given["out.mean"]) <= file.tolerance
        decoded = codec.decode((given["in.z"] - 0.1) * 0.5)
        assert relative_error(decoded, given["out.decoded"]) <= file.tolerance
        noise = torch.randn(given["out.mean"].shape, generator=torch.Generator().manual_seed(0))
        drawn = codec.encode(given["in.x"], noise) / 0.5 + 0.1 - mean
        assert relative_error(drawn, (given["out.logvar"] / 2).exp() * noise) <= 10 * file.tolerance


@torch.no_grad()
def test_channels_are_normalised_one_by_one_as_diffusers_reads_the_config(tmp_path: Path) -> None:
    mean, std = [0.1, -0.2, 0.3, 2.0], [0.5, 1.0, 2.0, 4.0]
    z = tiny_vae().encode(IMAGES).latent_dist.mean
    codec = AutoencoderKLCodec(tiny_vae(), latents_mean=mean, latents_std=std)  # its 0.18215 and 0.25 give way
    latents = codec.encode(IMAGES)
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        torch.testing.assert_close(latents[:, channel], (z[:, channel] - m) / s, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codec.decode(latents), tiny_vae().decode(z).sample, rtol=1e-4, atol=1e-5)
    with normalization_in_config(codec.vae, **per_channel(mean, std)):
        codec.vae.save_pretrained(tmp_path)
    assert codec.vae.config.scaling_factor == 0.18215
    assert torch.equal(AutoencoderKLCodec(AutoencoderKL.from_pretrained(tmp_path)).encode(IMAGES), latents)
    vae = tiny_vae()
    vae.register_to_config(latents_mean=mean, latents_std=std, shift_factor=None)  # as SDXL's pipeline does
    torch.testing.assert_close(AutoencoderKLCodec(vae).encode(IMAGES), 0.18215 * latents, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents_mean": [0.0] * 4}, "for each of 4 channels, got 4, none"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "for each of 4 channels, got 3, 3"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std must be positive"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.5}, "only one of them"),
    ],
)
def test_a_normalisation_that_cannot_be_meant_is_refused(change: dict, message: str) -> None:
    vae = tiny_vae()
    vae.register_to_config(**{"shift_factor": None, **change})
    with pytest.raises(ValueError, match=message):
        AutoencoderKLCodec(vae)


def test_an_autoencoder_is_opened_from_its_folder_or_a_pipelines(tmp_path: Path) -> None:
    tiny_vae().save_pretrained(tmp_path / "pipeline" / "vae")
    for place in (tmp_path / "pipeline" / "vae", tmp_path / "pipeline"):
        opened = open_autoencoder(place).state_dict()
        assert all(torch.equal(opened[key], value) for key, value in tiny_vae().state_dict().items())
    with pytest.raises(ValueError, match=r"nowhere/vae gave no AutoencoderKL.*wanted: a folder"):
        open_autoencoder(tmp_path / "nowhere" / "vae")
    config = tmp_path / "pipeline" / "vae" / "config.json"
    config.write_text(config.read_text().replace('"AutoencoderKL"', '"VQModel"'))
    with pytest.raises(ValueError, match="class 'VQModel'"):
        open_autoencoder(tmp_path / "pipeline")


def test_an_autoencoder_that_lacks_tensors_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    tiny_vae().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if key != "quant_conv.bias"}, file)
    with pytest.raises(ValueError, match=r"lack 1 tensors.*quant_conv.bias"):
        open_autoencoder(tmp_path)
