"""Cases for the Triton kernels of the selective scan, which test_scan_triton.py runs in a process of their own:

with TRITON_INTERPRET=1 on a CPU, in Triton's interpreter; else on a CUDA device.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.mamba import Mamba
from dinit.models.layers.mamba2d import Mamba2d
from dinit.models.layers.scan import scan_backend, selective_scan

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
NAMES = ("y", "u", "delta", "A", "B", "C", "D")
Inputs = tuple[Tensor, ...]


def inputs(
    length: int, channels: int, states: int, dtype: torch.dtype = torch.float32, step: float = 1.0, batch: int = 1
) -> Inputs:
    """u, delta, A, B, C, D on the device. step: of the order of delta. The numbers do not depend on the dtype."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, delta = normal(batch, channels, length), step * F.softplus(normal(batch, channels, length))
    A, D = -torch.exp(normal(channels, states)), normal(channels)
    made = (u, delta, A, normal(batch, states, length), normal(batch, states, length), D)
    return tuple(x.to(DEVICE, dtype).requires_grad_() for x in made)


def result_and_gradients(function: Callable[..., Tensor], given: Inputs, reverse: bool) -> list[Tensor]:
    y = function(*given, reverse=reverse)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).bfloat16()  # the same in any dtype
    return [y, *torch.autograd.grad(y, given, weights.to(y))]


def definition(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """The recurrence as it is written, differentiated by autograd."""
    h = u.new_zeros(*u.shape[:2], A.shape[1])
    length = u.shape[-1]
    y = [torch.zeros_like(h[..., 0])] * length
    for t in reversed(range(length)) if reverse else range(length):
        h = torch.exp(delta[..., t, None] * A) * h + (delta * u)[..., t, None] * B[:, None, :, t]
        y[t] = (h * C[:, None, :, t]).sum(-1)
    return torch.stack(y, -1) + (0 if D is None else D[:, None] * u)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Tensor]]:
    """Calls a function with the scan in PyTorch."""

    def run(function: Callable[..., list[Tensor]], *args: object) -> list[Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr("dinit.models.layers.scan.scan_backend", lambda u: "torch")
            return function(*args)

    return run


def assert_near(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Errors relative to the largest value of each tensor."""
    for name, a, b in zip(NAMES, ours, expected, strict=False):
        assert a.shape == b.shape, name
        error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)
        assert error <= tolerance, (name, error)


def test_the_kernels_run() -> None:
    assert scan_backend(torch.zeros(1, 1, 1, device=DEVICE)) == "triton"
    assert scan_backend(torch.zeros(1, 1, 1, device="meta")) == "torch"


# Channels that fill no block of 16; lengths that fill no chunk (of 1, 3, 4 positions). 16 states as in DiS, 1 as in
# LaMamba. DiffuSSM's layer, S4D, is a convolution and not a selective scan.
@pytest.mark.parametrize(
    ("length", "channels", "states", "reverse"),
    [(1, 3, 16, False), (7, 18, 16, False), (7, 18, 16, True), (13, 5, 1, True), (13, 5, 3, False)],
)
def test_numbers_are_those_of_the_definition_in_float64(
    length: int, channels: int, states: int, reverse: bool, plain
) -> None:
    exact = result_and_gradients(definition, inputs(length, channels, states, torch.float64), reverse)
    given = inputs(length, channels, states)
    ours = result_and_gradients(selective_scan, given, reverse)
    assert_near(ours, exact, 5e-7)
    assert_near(ours, plain(result_and_gradients, selective_scan, given, reverse), 1e-6)


def test_several_items_without_d() -> None:
    given, doubles = (inputs(5, 2, 4, dtype, batch=3)[:5] for dtype in (torch.float32, torch.float64))
    exact = result_and_gradients(definition, doubles, False)
    assert_near(result_and_gradients(selective_scan, given, False), exact, 5e-7)


def test_float64_stays_float64() -> None:
    given = inputs(5, 3, 4, torch.float64)
    ours = result_and_gradients(selective_scan, given, True)
    assert all(x.dtype == torch.float64 for x in ours)
    assert_near(ours, result_and_gradients(definition, given, True), 1e-14)


def test_bfloat16_inputs_have_float32_states(plain) -> None:
    """As where autocast makes u, delta, B and C, and the parameters are float32."""
    u, delta, A, B, C, D = inputs(9, 3, 4)
    given = (u.bfloat16(), delta.bfloat16(), A, B.bfloat16(), C.bfloat16(), D)
    ours = result_and_gradients(selective_scan, given, False)
    assert [x.dtype for x in ours] == [given[0].dtype, *(x.dtype for x in given)]
    exact = [x.detach().double().requires_grad_() for x in given]
    assert_near(ours, result_and_gradients(definition, tuple(exact), False), 2**-8)  # a rounding of the result
    expected = plain(result_and_gradients, selective_scan, given, False)
    assert_near(ours, expected, 2**-7)
    assert [x.dtype for x in expected] == [x.dtype for x in ours]


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0)])
def test_nothing_to_scan(shape: tuple[int, int, int], plain) -> None:
    batch, channels, length = shape
    given = inputs(length, channels, 4, batch=batch)
    ours = result_and_gradients(selective_scan, given, False)
    if batch and channels:
        expected = [given[0], *given]
    else:
        expected = plain(result_and_gradients, selective_scan, given, False)
    assert [(x.shape, x.dtype) for x in ours] == [(x.shape, x.dtype) for x in expected]
    assert all(x.abs().sum() == 0 for x in ours)


def test_decay_that_underflows_leaves_the_last_input_alone() -> None:
    given = inputs(6, 3, 4, step=1e6)
    u, delta, _, B, C, D = given
    y, *gradients = result_and_gradients(selective_scan, given, False)
    alone = delta * u * (B * C).sum(1, keepdim=True) + D[:, None] * u
    torch.testing.assert_close(y, alone, rtol=1e-5, atol=1)  # of about 1e6
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_inputs_of_any_strides() -> None:
    """Slices, transposes and expanded inputs give the bits of contiguous ones."""
    u, delta, A, B, C, D = (x.detach() for x in inputs(5, 3, 4, batch=2))
    strided = (
        u.repeat_interleave(2, -1)[..., ::2],
        delta.mT.contiguous().mT,
        A.t().contiguous().t(),
        torch.cat([B, B], 1)[:, :4],
        C[:1].expand(2, -1, -1),
        D[:1].expand(3),
    )
    assert sum(x.is_contiguous() for x in strided) == 0
    contiguous = [x.contiguous().requires_grad_() for x in strided]
    ours = result_and_gradients(selective_scan, tuple(x.requires_grad_() for x in strided), True)
    expected = result_and_gradients(selective_scan, tuple(contiguous), True)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_the_operator_is_registered_soundly() -> None:
    """Shapes and strides without data, and autograd, are those of the kernels; nothing is written over."""
    u, delta, A, B, C, D = inputs(2, 2, 2)
    given = (u, delta.detach().bfloat16(), A, B, C.detach(), D, True)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.dinit.selective_scan, given, test_utils=checks)
    grads = (torch.ones_like(u), *(x.detach() for x in given[:6]), True)
    torch.library.opcheck(torch.ops.dinit.selective_scan_backward, grads, test_utils=checks)


def test_scan_compiles_in_one_graph() -> None:
    given = inputs(3, 2, 2)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    ours, expected = (result_and_gradients(scan, given, True) for scan in (compiled, selective_scan))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_autocast_does_not_reach_the_scan() -> None:
    given = inputs(3, 2, 2)
    expected = result_and_gradients(selective_scan, given, False)
    with torch.autocast(DEVICE, torch.bfloat16):
        ours = result_and_gradients(selective_scan, given, False)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


class OfRows(nn.Module):
    """Mamba2d with the arguments of Mamba."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mamba2d(2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mixer(tokens, 2, 2)


@pytest.mark.parametrize("mixer", [lambda: Mamba(2), OfRows], ids=["DiS", "LaMamba"])
def test_mixers_of_the_backbones(mixer: Callable[[], nn.Module], plain) -> None:
    torch.manual_seed(0)
    model, tokens = mixer().to(DEVICE), torch.randn(1, 4, 2, device=DEVICE, requires_grad=True)

    def run() -> list[Tensor]:
        y = model(tokens)
        return [y, *torch.autograd.grad(y.square().sum(), [tokens, *model.parameters()])]

    torch.testing.assert_close(run(), plain(run), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(DEVICE == "cpu", reason="too long for the interpreter")
@pytest.mark.parametrize("length", [64, 256, 1024, 4099])
def test_long_sequences(length: int, plain) -> None:
    exact = result_and_gradients(definition, inputs(length, 40, 16, torch.float64, 0.1, batch=3), True)
    given = inputs(length, 40, 16, step=0.1, batch=3)
    ours = result_and_gradients(selective_scan, given, True)
    assert_near(ours, exact, 1e-5)
    torch.testing.assert_close(result_and_gradients(selective_scan, given, True), ours, rtol=0, atol=0)
