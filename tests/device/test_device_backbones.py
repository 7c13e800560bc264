"""Every backbone, the upsampler, the classifier and the codec on a device that is not the CPU, forth and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from meta import META, MixedDevicesError, meta_device
from torch import Tensor, nn

from dinit.models.adm_classifier import ADMClassifier
from dinit.models.adm_superres import ADMSuperRes
from dinit.models.base import BACKBONES, Backbone
from dinit.models.codec import AutoencoderKLCodec, IdentityCodec
from dinit.training.autoencoder import AutoencoderRecipe, make_autoencoder

BATCH = 2


def image(network: Backbone | ADMClassifier, size: int | None = None) -> Tensor:
    size = size or network.image_size
    return torch.empty(BATCH, network.in_channels, size, size, device=META)


def made(name: str, **options: Any) -> Backbone:
    """Made on the CPU and moved, so that a constant that is no buffer stays behind."""
    return BACKBONES[name].preset("tiny", **options).to(device=META)


def run(network: Backbone, x: Tensor, times: int = BATCH) -> Tensor:
    labels = torch.zeros(BATCH, dtype=torch.int64, device=META)
    return network(x, torch.empty(times, device=META), network.embed(labels))


def check_gradients(network: nn.Module, loss: Tensor) -> None:
    loss.float().square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    network.zero_grad()


@pytest.mark.parametrize("name", BACKBONES)
def test_forward_and_backward(name: str) -> None:
    """In training and in evaluation mode, in half precision, at another size, with one time for all images.

    The backward pass is that of gradient checkpointing, which runs the plain one block by block.
    """
    network = made(name, dropout=0.1, learn_sigma=True).train()
    x = image(network)
    with meta_device(refuse_waits=True) as watch:
        out = run(network, x)
        assert (out.shape, out.device) == ((BATCH, network.out_channels, *x.shape[2:]), META)
        plain = watch.operations
        network.enable_gradient_checkpointing()
        check_gradients(network, run(network, x))
        assert watch.operations > 3 * plain, "the blocks have run twice, and backwards"
        with torch.no_grad():
            other = image(network.eval().to(dtype=torch.bfloat16), 2 * network.image_size).bfloat16()
            assert (run(network, other, times=1).shape[2:], network.dtype) == (other.shape[2:], torch.bfloat16)
    assert watch.read_backs == watch.waits == []


@pytest.mark.parametrize("name", ["dis", "dit", "unet"])
def test_without_classes(name: str) -> None:
    network = made(name, num_classes=0).eval()
    with torch.no_grad(), meta_device(refuse_waits=True):
        run(network, image(network))


def test_made_on_the_device() -> None:
    """As a large one is, whose weights are read into it afterwards."""
    for name in BACKBONES:
        with META:
            network = BACKBONES[name].preset("tiny")
        assert {tensor.device for tensor in (*network.parameters(), *network.buffers())} == {META}


OPTIONS = {
    "lightningdit": [{"use_qknorm": True, "wo_shift": True}],
    "ncsnpp": [{"embedding": "fourier"}, {"input_pyramid": "residual", "output_pyramid": "skip"}],
}


@pytest.mark.parametrize(("name", "options"), [(name, one) for name, some in OPTIONS.items() for one in some])
def test_options_with_layers_of_their_own(name: str, options: dict[str, Any]) -> None:
    network = made(name, **options).train()
    with meta_device(refuse_waits=True):
        check_gradients(network, run(network, image(network)))


SMALL = {"channels": 32, "channel_mult": (1, 2), "attention_factors": (2,), "blocks_per_level": 1}


def test_upsampler() -> None:
    with META:
        model = ADMSuperRes.preset("64-256", image_size=32, **SMALL).train()
    low = torch.empty(BATCH, 3, model.image_size // 2, model.image_size // 2, device=META)
    with meta_device(refuse_waits=True):
        given = model.given(low)
        x = torch.empty(BATCH, 3, model.image_size, model.image_size, device=META)
        cond = given.embed(torch.zeros(BATCH, dtype=torch.int64, device=META))
        check_gradients(model, given(x, torch.empty(1, device=META), cond))


def test_classifier_and_its_gradient() -> None:
    with META:
        model = ADMClassifier.preset("64", image_size=16, **SMALL).train()
    with meta_device(refuse_waits=True):
        x = image(model).requires_grad_()
        check_gradients(model, model(x, torch.empty(BATCH, device=META)))
        model(x, torch.empty(1, device=META)).sum().backward()
        assert x.grad is not None


@pytest.mark.parametrize("channels", [False, True], ids=["one-scale", "scale-a-channel"])
def test_codec(channels: bool) -> None:
    per_channel: dict[str, Any] = {"latents_mean": [0.0] * 4, "latents_std": [2.0] * 4} if channels else {}
    vae = make_autoencoder(AutoencoderRecipe(widths=(8, 8)), 3, 16)
    codec = AutoencoderKLCodec(vae, **per_channel).to(META)
    with torch.no_grad(), meta_device(refuse_waits=True):
        images = torch.empty(BATCH, 3, 16, 16, device=META)
        latents = codec.encode(images)
        codec.encode(images, torch.empty_like(latents))
        assert codec.decode(latents).shape == images.shape
        identity = IdentityCodec(3, 0.0, 1.0)
        assert identity.decode(identity.encode(images)).device == META


def test_a_tensor_left_on_the_cpu_is_found() -> None:
    """The tests above can fail."""
    network = made("dit")
    network.positions.table = torch.zeros(network.positions.table.shape)
    with meta_device() as watch:
        run(network, image(network))
        assert watch.waits, "the table is copied in every evaluation"
    network.stem.proj.weight = nn.Parameter(torch.zeros(network.stem.proj.weight.shape))
    with meta_device(), pytest.raises(MixedDevicesError):
        run(network, image(network))
