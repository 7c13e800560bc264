"""The fused Linear of CPUs: the numbers of the plain layer, and the plain layer wherever it must be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers import linear as module
from dinit.models.layers.linear import conv1x1, conv1x1_gelu, linear, linear_gelu


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry (its gelu argument) for every call of the fused kernel."""
    calls: list[str] = []
    kernel = module._fused

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: str) -> Tensor:
        calls.append(gelu)
        return kernel(x, weight, bias, gelu)

    monkeypatch.setattr(module, "_fused", counting)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 24), (1, 24), (2, 1, 24)])
@torch.no_grad()
def test_numbers_of_the_plain_layer(shape: tuple[int, ...], bias: bool, fused_calls: list[str]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40, bias=bias), 3 * torch.randn(*shape)
    torch.testing.assert_close(linear(layer, x), layer(x), rtol=1e-5, atol=1e-5)
    exact = F.gelu(layer.double()(x.double()), approximate="tanh").float()
    torch.testing.assert_close(linear_gelu(layer.float(), x), exact, rtol=1e-5, atol=1e-5)
    if module._FUSED:
        assert fused_calls == ["", "tanh"]


@torch.no_grad()
def test_1x1_convolutions(fused_calls: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 5).contiguous(memory_format=torch.channels_last)
    layer = nn.Conv2d(6, 4, 1)
    out = conv1x1(layer, x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(conv1x1(layer, x.contiguous()), layer(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(conv1x1_gelu(layer, x), F.gelu(layer(x)), rtol=1e-5, atol=1e-6)
    if module._FUSED:
        assert fused_calls == ["", "", "none"]
    for other in (nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 1, stride=2), nn.Conv2d(6, 4, 1, groups=2), nn.Identity()):
        assert torch.equal(conv1x1(other, x), other(x))
    assert len(fused_calls) <= 3


def test_gradients_hooks_adapters_and_other_dtypes_take_the_plain_layer(fused_calls: list[str]) -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    linear_gelu(layer, x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
        linear(layer, x)
        assert len(seen) == 1
        handle.remove()

        class Doubled(nn.Linear):  # as an adapter would be
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        doubled = Doubled(4, 4)
        assert torch.equal(linear(doubled, x), doubled(x))
        assert linear(layer.double(), x.double()).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(layer.float(), x).dtype == torch.bfloat16
    assert fused_calls == []


@torch.no_grad()
def test_under_the_compiler() -> None:
    layer, x = nn.Linear(4, 6), torch.randn(3, 4)
    compiled = torch.compile(lambda x: linear_gelu(layer, x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), F.gelu(layer(x), approximate="tanh"), rtol=1e-5, atol=1e-6)
