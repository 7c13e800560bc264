"""What holds for every backbone; the registry is walked, so a new one is tested on arrival."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from reference import null_labels
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, config_from_fields
from dinit.models.dit import DiT

NAMES = BACKBONES.names()


def tiny(name: str, **overrides: object) -> Backbone:
    """The tiny preset with random values everywhere: zero-initialised parts would hide faults."""
    torch.manual_seed(0)
    model = BACKBONES[name].preset("tiny", **overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def inputs(model: Backbone, batch: int = 3, size: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """x, noise labels and class labels."""
    generator = torch.Generator().manual_seed(1)
    size = size or model.image_size
    x = torch.randn(batch, model.in_channels, size, size, generator=generator)
    labels = torch.randint(0, model.num_classes + 1, (batch,), generator=generator)
    return x, torch.rand(batch, generator=generator) * 1000, labels


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_fresh_model_gives_zero_and_trained_one_does_not(name: str) -> None:
    model = BACKBONES[name].preset("tiny").eval()
    x, noise_label, labels = inputs(model)
    assert model(x, noise_label, model.embed(labels)).abs().max() == 0
    model = tiny(name)
    assert model(x, noise_label, model.embed(labels)).std() > 1e-2


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_output_depends_on_x_noise_label_and_class(name: str) -> None:
    model = tiny(name)
    x, noise_label, _ = inputs(model, batch=1)
    zero, one = (model.embed(torch.tensor([label])) for label in (0, 1))
    out = model(x, noise_label, zero)
    for changed in (
        model(x + 0.1, noise_label, zero),
        model(x, noise_label + 5, zero),
        model(x, noise_label, one),
    ):
        assert (changed - out).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(name: str) -> None:
    model = tiny(name)
    x, noise_label, labels = inputs(model)
    model.double()
    x, noise_label, cond = x.double(), noise_label.double(), model.embed(labels)
    whole = model(x, noise_label, cond)
    for i in range(len(x)):
        one = model(x[i : i + 1], noise_label[i : i + 1], cond[i : i + 1])
        torch.testing.assert_close(one, whole[i : i + 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_one_noise_label_serves_the_batch(name: str) -> None:
    model = tiny(name)
    x, _, labels = inputs(model)
    shared = torch.tensor([417.0])
    cond = model.embed(labels)
    model.double()
    x, shared, cond = x.double(), shared.double(), cond.double()
    each = model(x, shared.expand(3), cond)
    torch.testing.assert_close(model(x, shared, cond), each, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_null_label_is_the_last_row_and_labels_out_of_range_have_none(name: str) -> None:
    model = tiny(name)
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    assert all(len(table) == model.num_classes + 1 for table in tables)
    expected = torch.cat([table[-1] for table in tables])
    torch.testing.assert_close(model.embed(null_labels(model, 2)), expected.expand(2, -1), rtol=0, atol=0)
    with pytest.raises(IndexError):
        model.embed(torch.tensor([model.num_classes + 1]))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_unconditional_has_the_null_embedding_alone(name: str) -> None:
    model = tiny(name, num_classes=0)
    x, noise_label, labels = inputs(model)
    assert labels.tolist() == [0, 0, 0]
    cond = model.embed(null_labels(model, 3))
    assert (cond == cond[:1]).all()
    assert model(x, noise_label, cond).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_learned_variance_doubles_the_output(name: str) -> None:
    model = tiny(name, learn_sigma=True, in_channels=3)
    x, noise_label, labels = inputs(model)
    assert model.out_channels == 6
    out = model(x, noise_label, model.embed(labels))
    assert out.shape == (3, 6, 8, 8)
    assert (out[:, :3] - out[:, 3:]).abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_other_sizes_that_fit(name: str) -> None:
    model = tiny(name)
    x = torch.randn(2, model.in_channels, 4 * model.size_multiple, 2 * model.size_multiple)
    out = model(x, torch.tensor([3.0]), model.embed(null_labels(model, 2)))
    assert out.shape == (2, model.out_channels, *x.shape[2:])


@pytest.mark.parametrize("name", NAMES)
def test_wrong_inputs_are_refused(name: str) -> None:
    model = tiny(name)
    cond = model.embed(null_labels(model, 2))
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\), got \(2, 3, 8, 8\)"):
        model(torch.zeros(2, 3, 8, 8), torch.zeros(1), cond)
    with pytest.raises(ValueError, match=f"multiples of {model.size_multiple}, got 8 x 9"):
        model(torch.zeros(2, 1, 8, 9), torch.zeros(1), cond)
    x, labels = torch.zeros(2, 1, 8, 8), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"noise labels of shape \(2,\) or \(1,\) .* got \(3,\)"):
        model(x, torch.zeros(3), cond)
    for wrong in (labels, labels.double(), cond[:1], cond.long()):
        with pytest.raises(ValueError, match=r"pass network.embed\(labels\), not the labels"):
            model(x, torch.zeros(1), wrong)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("argument", "value"),
    [("image_size", 9), ("image_size", 0), ("in_channels", 0), ("num_classes", -1), ("dropout", 1.0)],
)
def test_wrong_arguments_are_refused(name: str, argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=argument):
        BACKBONES[name].preset("tiny", **{argument: value})


@pytest.mark.parametrize("name", NAMES)
def test_unknown_preset_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        BACKBONES[name].preset("tinny")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_save_and_load_are_bit_exact(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    x, noise_label, labels = inputs(model)
    out = model(x, noise_label, model.embed(labels))
    assert torch.equal(loaded(x, noise_label, loaded.embed(labels)), out)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_leaves_output_and_gradients_alone(name: str) -> None:
    model = tiny(name, dropout=0.1).train()
    x, noise_label, labels = inputs(model)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.gradient_checkpointing
        model.zero_grad()
        torch.manual_seed(5)  # the same dropout masks
        out = model(x, noise_label, model.embed(labels))
        out.square().mean().backward()
        results.append((out.detach(), {key: p.grad.clone() for key, p in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-8)
    assert all(grad.abs().max() > 0 for grad in results[0][1].values())


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_recomputes_the_blocks(name: str) -> None:
    model = tiny(name).train()
    x, noise_label, labels = inputs(model)
    calls: list[int] = []
    block = next(module for module in model.modules() if type(module).__name__.endswith("Block"))
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    model.enable_gradient_checkpointing()
    model(x, noise_label, model.embed(labels)).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_compiles_without_graph_breaks(name: str) -> None:
    model = tiny(name)
    x, noise_label, labels = inputs(model)
    cond = model.embed(labels)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    # On the CPU layers take other kernels outside of the compiler (in place, other layouts): up to 1.3e-6 of 2.6.
    torch.testing.assert_close(compiled(x, noise_label, cond), model(x, noise_label, cond), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_channels_last_gives_the_same_numbers(name: str) -> None:
    model = tiny(name, in_channels=3)
    x, noise_label, labels = inputs(model)
    cond = model.embed(labels)
    out = model(x, noise_label, cond)
    model.to(memory_format=torch.channels_last)
    last = model(x.to(memory_format=torch.channels_last), noise_label, cond)
    torch.testing.assert_close(last, out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bf16_keeps_neighbouring_noise_labels_apart(name: str) -> None:
    """998 and 999 are one number in bf16; computed in float32 their embeddings differ."""
    model = tiny(name).to(torch.bfloat16)
    x, _, labels = inputs(model)
    cond = model.embed(labels)
    out = [model(x.bfloat16(), torch.tensor([label]), cond) for label in (998.0, 999.0)]
    assert out[0].dtype == torch.bfloat16
    assert (out[0] - out[1]).abs().max() > 0
    exact = tiny(name)(x, torch.tensor([998.0]), tiny(name).embed(labels))
    assert (out[0].float() - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only(name: str) -> None:
    model = tiny(name, dropout=0.5)
    x, noise_label, labels = inputs(model)
    cond = model.embed(labels).detach()
    assert torch.equal(model(x, noise_label, cond), model(x, noise_label, cond))
    model.train()
    assert not torch.equal(model(x, noise_label, cond), model(x, noise_label, cond))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_autocast_stays_near_float32(name: str) -> None:
    model = tiny(name)
    x, noise_label, labels = inputs(model)
    cond = model.embed(labels)
    exact = model(x, noise_label, cond)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x, noise_label, cond).float()
    assert 0 < (mixed - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("name", NAMES)
def test_loads_in_half_precision(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    x, noise_label, labels = inputs(model)
    expected = model.to(torch.bfloat16)(x.bfloat16(), noise_label, model.embed(labels))
    assert torch.equal(loaded(x.bfloat16(), noise_label, loaded.embed(labels)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_config_holds_every_argument(name: str, tmp_path: Path) -> None:
    model = tiny(name, dropout=0.25)
    arguments = list(inspect.signature(type(model)).parameters)
    config = {key: value for key, value in json.loads(model.to_json_string()).items() if not key.startswith("_")}
    assert sorted(config) == sorted(arguments)
    assert config["dropout"] == 0.25
    again = type(model).from_config(model.config)
    assert json.loads(again.to_json_string()) == json.loads(model.to_json_string())


def test_fields_of_a_subclass_follow_those_of_its_base() -> None:
    @config_from_fields
    class Wider(DiT):
        factor: int = 2

        def build(self) -> None:
            self.hidden_size = self.hidden_size * self.factor
            super().build()

    assert list(inspect.signature(Wider).parameters) == [*inspect.signature(DiT).parameters, "factor"]
    model = Wider(16, depth=1, hidden_size=24)
    assert (model.image_size, model.hidden_size, model.stem.proj.out_channels) == (16, 48, 48)
    assert (model.config.hidden_size, model.config.factor) == (24, 2)  # the config keeps what was given
    with pytest.raises(TypeError, match="deepth"):
        Wider(deepth=3)
    with pytest.raises(ValueError, match="Wider: factor must be at least 1, got 0"):
        Wider(factor=0)


def test_preset_with_an_unknown_argument_is_refused_at_its_definition() -> None:
    with pytest.raises(TypeError, match="preset 'XL' has 'deepth'; did you mean 'depth'"):

        @config_from_fields
        class Misspelt(DiT):
            presets: ClassVar = {"XL": {"deepth": 3}}
