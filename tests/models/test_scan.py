"""The selective scan and the causal convolution against their definitions, position by position."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dinit.models.layers import scan
from dinit.models.layers.scan import causal_conv, scan_backend, selective_scan

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
NAMES = ("u", "delta", "A", "B", "C", "D")


@pytest.fixture(params=["torch", "numba"], autouse=True)
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The code that scans on a CPU; a test that says nothing of it runs with each."""
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(scan, "_HAS_NUMBA", request.param == "numba")
    return request.param


only_torch = pytest.mark.parametrize("code", ["torch"], indirect=True)


def sequential_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Mamba's recurrence as it is written."""
    h = u.new_zeros(*u.shape[:2], A.shape[1])
    y = []
    for t in range(u.shape[-1]):
        step = delta[..., t, None]
        h = torch.exp(step * A) * h + step * B[:, None, :, t] * u[..., t, None]
        y.append((h * C[:, None, :, t]).sum(-1))
    return torch.stack(y, -1) + D[:, None] * u


def inputs(length: int, step: float = 1.0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    """Batch 2, 5 channels, 4 states. step: of the order of delta."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    delta = step * F.softplus(normal(2, 5, length))
    A = -torch.exp(normal(5, 4))
    made = (normal(2, 5, length), delta, A, normal(2, 4, length), normal(2, 4, length), normal(5))
    u, delta, A, B, C, D = (x.to(device, dtype).requires_grad_() for x in made)
    return u, delta, A, B, C, D


def result_and_gradients(function, given: Inputs, reverse: bool = False) -> list[Tensor]:
    y = function(*given, reverse=reverse) if reverse else function(*given)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return [y, *torch.autograd.grad(y, given, weights.to(y))]


def assert_near(ours: list[Tensor], exact: list[Tensor], tolerance: float = 1e-5) -> None:
    for name, a, b in zip(("y", *NAMES), ours, exact, strict=True):
        assert a.shape == b.shape, name
        error = (a.double().cpu() - b.cpu()).abs().max() / b.abs().max().clamp(min=1e-30)
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize("step", [1e-4, 1.0, 50.0])
@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 100, 1024])
def test_scan_is_the_sequential_definition(length: int, step: float) -> None:
    exact = result_and_gradients(sequential_scan, inputs(length, step, torch.float64))
    assert_near(result_and_gradients(selective_scan, inputs(length, step)), exact)


def test_scan_in_float64_is_exact() -> None:
    given = inputs(37, dtype=torch.float64)
    exact = result_and_gradients(sequential_scan, given)
    assert_near(result_and_gradients(selective_scan, given), exact, 1e-13)
    assert torch.autograd.gradcheck(selective_scan, inputs(7, dtype=torch.float64))


def test_decay_that_underflows_leaves_the_last_input_alone() -> None:
    u, delta, A, B, C, D = inputs(50, 1e4)
    y, *gradients = result_and_gradients(selective_scan, (u, delta, A, B, C, D))
    alone = delta * u * (B * C).sum(1, keepdim=True) + D[:, None] * u
    torch.testing.assert_close(y, alone, rtol=1e-5, atol=1e-2)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("length", [1, 30])
def test_zero_steps_keep_an_empty_state(length: int) -> None:
    u, delta, A, B, C, D = inputs(length)
    torch.testing.assert_close(selective_scan(u, 0 * delta, A, B, C, D), D[:, None] * u, rtol=0, atol=0)
    assert selective_scan(u, 0 * delta, A, B, C).abs().max() == 0


def test_no_decay_is_a_running_sum() -> None:
    u, delta, A, _, _, D = inputs(200)
    ones = torch.ones(2, 4, 200)
    expected = 4 * (delta * u).cumsum(-1) + D[:, None] * u
    torch.testing.assert_close(selective_scan(u, delta, 0 * A, ones, ones, D), expected, rtol=1e-4, atol=1e-4)


def flipped(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool) -> Tensor:
    assert reverse
    return selective_scan(u.flip(-1), delta.flip(-1), A, B.flip(-1), C.flip(-1), D).flip(-1)


def test_reverse_scan_is_the_scan_of_flipped_inputs() -> None:
    given = inputs(23)
    ours, expected = (result_and_gradients(scan, given, reverse=True) for scan in (selective_scan, flipped))
    torch.testing.assert_close(ours, expected, rtol=3e-6, atol=3e-6)  # sums in another order: 4e-7 of 1
    y = selective_scan(*given, reverse=True)
    (seen,) = torch.autograd.grad(y[0, 0, 10], given[0])
    assert seen[0, 0, :10].abs().max() == 0 < seen[0, 0, 10:].abs().min()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_causal_convolution_is_its_sum(reverse: bool, bias: bool) -> None:
    x, weight = torch.randn(2, 3, 9, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    offset = torch.randn(3, dtype=torch.float64) if bias else None
    out = causal_conv(x, weight, offset, reverse)
    for t in range(9):
        # The last tap is on t itself; the k-th before it on the k-th position before (or after) t.
        seen = [(k, t + k if reverse else t - k) for k in range(4)]
        expected = sum(weight[:, 3 - k] * x[:, :, at] for k, at in seen if 0 <= at < 9)
        expected = expected if offset is None else expected + offset
        torch.testing.assert_close(out[:, :, t], expected, rtol=1e-12, atol=1e-12)


def test_half_precision_inputs_have_a_float32_state() -> None:
    given = inputs(400, 0.01)
    exact = selective_scan(*given)
    y = selective_scan(*(x.bfloat16() for x in given))
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_autocast_does_not_reach_the_scan() -> None:
    given = inputs(40)
    expected = result_and_gradients(selective_scan, given)
    with torch.autocast("cpu", torch.bfloat16):
        got = result_and_gradients(selective_scan, given)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@only_torch
def test_batch_larger_than_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(40)
    expected = result_and_gradients(selective_scan, given)
    monkeypatch.setattr("dinit.models.layers.scan.CPU_STATES", 1)
    # Gradients of the shared matrices are sums over the parts: 4e-7 of 1.
    torch.testing.assert_close(result_and_gradients(selective_scan, given), expected, rtol=3e-6, atol=3e-6)


@only_torch
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_scan_compiles_in_one_graph(backend: str) -> None:
    given = inputs(23)
    compiled = torch.compile(selective_scan, fullgraph=True, backend=backend)
    expected = result_and_gradients(selective_scan, given)
    torch.testing.assert_close(result_and_gradients(compiled, given), expected, rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """Counts operations and notes the largest tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls += 1
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@only_torch
def test_steps_and_memory_grow_as_claimed() -> None:
    """16 times the length: 4 times the operations; memory for 4 times the states forward, 16 times backward."""
    forward, backward = [], []
    for length in (256, 4096):
        given = inputs(length)
        with Largest() as seen:
            y = selective_scan(*given)
        forward.append(seen)
        with Largest() as seen:
            torch.autograd.grad(y.sum(), given)
        backward.append(seen)
        assert forward[-1].elements <= 2 * 5 * 4 * max(length**0.5, length / 4)
        assert backward[-1].elements <= 2 * 5 * 4 * length
    assert forward[1].calls < 5 * forward[0].calls
    assert backward[1].calls < 5 * backward[0].calls


@only_torch
@pytest.mark.parametrize("wrong", ["delta", "A", "B", "C", "D"])
def test_shapes_that_do_not_fit_are_refused(wrong: str) -> None:
    given = dict(zip(NAMES, inputs(9), strict=True))
    given[wrong] = given[wrong].unsqueeze(0)[..., :-1]
    if wrong == "A":
        given["A"] = given["A"][0][:-1]
    with pytest.raises(ValueError, match=rf"needs {wrong} of shape .*, got"):
        selective_scan(**given)


def test_scan_backend_names_the_code(code: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert scan_backend(torch.zeros(1, 1, 1, dtype=dtype)) == code
    assert scan_backend(torch.zeros(1, 1, 1, dtype=torch.float64)) == "torch"
    assert scan_backend(torch.zeros(1, 1, 1, device="meta")) == "torch"


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0), (2, 0, 5)])
def test_empty_inputs_give_empty_results(shape: tuple[int, int, int]) -> None:
    batch, channels, length = shape
    u, matrix = torch.zeros(shape, requires_grad=True), torch.zeros(batch, 2, length)
    y = selective_scan(u, u, torch.zeros(channels, 2), matrix, matrix)
    assert y.shape == torch.autograd.grad(y.sum(), u)[0].shape == shape


def test_not_a_number_stays_one() -> None:
    for position, softplus in ((0, False), (1, False), (1, True), (3, False)):
        given = [x.detach().clone() for x in inputs(9)]
        given[position][0, 0, 4] = torch.nan
        y = selective_scan(*given, softplus=softplus)
        assert y[0, 0, 4:].isnan().all()
        assert y[0, 0, :4].isfinite().all()


@pytest.mark.parametrize("shift", [-3.0, 0.0, 30.0])
def test_softplus_of_the_step_sizes_is_the_same_in_the_scan(shift: float) -> None:
    u, raw, A, B, C, D = (x.double().detach().requires_grad_() for x in inputs(40))
    raw = (8 * raw + shift).detach().requires_grad_()
    exact = result_and_gradients(
        lambda u, raw, *rest: sequential_scan(u, F.softplus(raw), *rest), (u, raw, A, B, C, D)
    )
    given = tuple(x.detach().float().requires_grad_() for x in (u, raw, A, B, C, D))
    assert_near(result_and_gradients(lambda *x: selective_scan(*x, softplus=True), given), exact)


@pytest.mark.parametrize("channels", [1, 130])
def test_channels_of_several_blocks_and_threads(channels: int, code: str) -> None:
    """Blocks are of 128 channels forward and 64 backward: one more than each, and the same bits by thread."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, channels, 70), (3, channels, 70), (channels, 3), (3, 3, 70), (3, 3, 70), (channels,))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    made[1], made[2] = 0.1 * made[1].abs(), -made[2].abs()
    exact = result_and_gradients(sequential_scan, tuple(x.requires_grad_() for x in made))
    given = tuple(x.detach().float().requires_grad_() for x in made)
    ours = result_and_gradients(selective_scan, given)
    assert_near(ours, exact)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = result_and_gradients(selective_scan, given)
    finally:
        torch.set_num_threads(threads)
    if code == "numba":
        torch.testing.assert_close(again, ours, rtol=0, atol=0)


@only_torch
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 17, 1024])
def test_triton_kernel_is_the_sequential_definition(length: int, reverse: bool) -> None:
    pytest.importorskip("triton")
    given = inputs(length, device="cuda")
    assert scan_backend(given[0]) == "triton"
    exact = result_and_gradients(selective_scan, inputs(length, dtype=torch.float64), reverse)
    assert_near(result_and_gradients(selective_scan, given, reverse), exact)
