"""The fused Linear of CPUs: the numbers of the plain layer, and the plain layer wherever it must be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers import linear as module
from dinit.models.layers.linear import linear, linear_gelu


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry (its gelu argument) for every call of the fused kernel."""
    calls: list[bool] = []
    kernel = module._fused

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        calls.append(gelu)
        return kernel(x, weight, bias, gelu)

    monkeypatch.setattr(module, "_fused", counting)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 24), (1, 24), (2, 1, 24)])
@torch.no_grad()
def test_numbers_of_the_plain_layer(shape: tuple[int, ...], bias: bool, fused_calls: list[bool]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40, bias=bias), 3 * torch.randn(*shape)
    torch.testing.assert_close(linear(layer, x), layer(x), rtol=1e-5, atol=1e-5)
    exact = F.gelu(layer.double()(x.double()), approximate="tanh").float()
    torch.testing.assert_close(linear_gelu(layer.float(), x), exact, rtol=1e-5, atol=1e-5)
    if module._FUSED:
        assert fused_calls == [False, True]


def test_gradients_hooks_adapters_and_other_dtypes_take_the_plain_layer(fused_calls: list[bool]) -> None:
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
