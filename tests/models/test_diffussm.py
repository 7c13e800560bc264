"""DiffuSSM: S4D against its recurrence, the block against its formulas, both directions, published size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dinit.models.diffussm import DiffuSSM, DiffuSSMBlock
from dinit.models.layers.s4d import S4D


def randomized(module: nn.Module) -> nn.Module:
    """The module in float64 with random values in every parameter; dt and the decays are logarithms."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def recurrence(layer: S4D, u: Tensor) -> Tensor:
    """One position after the other, all states of the conjugate pairs: h_l = A_bar h + B_bar u, y = C h + D u."""
    y = layer.D[:, None] * u
    for direction in range(len(layer.log_dt)):
        A = torch.complex(-layer.log_decay[direction].exp(), layer.frequency[direction])
        C = torch.complex(*layer.C[direction].unbind(-1))
        A, C = torch.cat([A, A.conj()], -1), torch.cat([C, C.conj()], -1)  # (channels, state_size)
        A_bar = torch.exp(layer.log_dt[direction].exp()[:, None] * A)
        B_bar = (A_bar - 1) / A
        h = torch.zeros(len(u), *A.shape, dtype=A.dtype)
        outputs = []
        for u_l in (u if direction == 0 else u.flip(-1)).unbind(-1):
            h = A_bar * h + B_bar * u_l[..., None]
            outputs.append((C * h).sum(-1))
        total = torch.stack(outputs, -1)
        assert total.imag.abs().max() < 1e-9 * (1 + total.abs().max())
        y = y + (total.real if direction == 0 else total.real.flip(-1))
    return y


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 16, 100])
@torch.no_grad()
def test_s4d_is_its_recurrence(length: int, bidirectional: bool) -> None:
    layer = randomized(S4D(3, 8, bidirectional))
    layer.log_dt.sub_(2)
    u = torch.randn(2, 3, length, dtype=torch.float64)
    torch.testing.assert_close(layer(u), recurrence(layer, u), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_s4d_in_float32_as_it_starts() -> None:
    torch.manual_seed(0)
    layer = S4D(16, 64, bidirectional=True)
    u = torch.randn(2, 16, 300)
    out = layer(u).double()
    exact = recurrence(layer.double(), u.double())
    assert (out - exact).abs().max() < 2e-5 * exact.abs().max()  # 2.2e-6: Fourier transforms of 600 places


@torch.no_grad()
def test_s4d_kernel_keeps_its_digits_at_small_steps() -> None:
    """In float32 exp(dt A) - 1 would lose four of seven digits where dt A is 1e-4."""
    layer = S4D(4, 2)
    layer.log_dt.fill_(math.log(2e-4))
    kernel, exact = layer.kernel(20, torch.float32), layer.kernel(20, torch.float64)
    torch.testing.assert_close(kernel.double(), exact, rtol=2e-6, atol=0)


@torch.no_grad()
def test_s4d_starts_as_s4d_lin() -> None:
    layer = S4D(5, 8)
    torch.testing.assert_close(-layer.log_decay.exp(), torch.full((1, 5, 4), -0.5))
    torch.testing.assert_close(layer.frequency[0, 2], math.pi * torch.arange(4.0))
    assert layer.log_dt.exp().min() >= 1e-3
    assert layer.log_dt.exp().max() <= 1e-1


@torch.no_grad()
def test_s4d_of_one_direction_is_causal_and_of_two_is_not() -> None:
    u = torch.randn(1, 3, 20, dtype=torch.float64)
    later = u.clone()
    later[..., -1] += 1
    causal, both = randomized(S4D(3, 8)), randomized(S4D(3, 8, bidirectional=True))
    assert (causal(later) - causal(u))[..., :-1].abs().max() < 1e-12
    assert (both(later) - both(u))[..., 0].abs().min() > 1e-9


def test_s4d_gradients() -> None:
    layer = randomized(S4D(2, 4, bidirectional=True))
    u = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def call(u: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (u,))

    assert torch.autograd.gradcheck(call, (u, *parameters.values()))


@pytest.mark.parametrize("state_size", [0, 3, -2])
def test_odd_state_is_refused(state_size: int) -> None:
    with pytest.raises(ValueError, match=f"state_size must be even and at least 2 .*got {state_size}"):
        S4D(4, state_size)
    with pytest.raises(ValueError, match=r"state_size must be (even|at least 1)"):
        DiffuSSM.preset("tiny", state_size=state_size)


@pytest.mark.parametrize("ratio", [1, 2, 3])
@torch.no_grad()
def test_block_is_its_formula(ratio: int) -> None:
    """Token by token, with l = j * ratio + k."""
    block = randomized(DiffuSSMBlock(4, ratio, 4, 0.0))
    short_length = 5
    x, c = torch.randn(2, short_length, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)

    def gelu(h: Tensor) -> Tensor:
        return h / 2 * (1 + (h / math.sqrt(2)).erf())

    shift, scale, gate = block.modulation.linear(c * c.sigmoid())[:, None].split(4, -1)
    centered = x - x.mean(-1, keepdim=True)
    short = centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift
    full = torch.zeros(2, short_length * ratio, 4, dtype=torch.float64)
    for j in range(short_length):
        inward = gelu(block.inward(short[:, j]))
        for k in range(ratio):
            part = slice(4 * k, 4 * k + 4)
            full[:, j * ratio + k] = gelu(inward @ block.up.weight[part].T + block.up.bias[part])
    full = block.mix(gelu(recurrence(block.ssm, full.transpose(1, 2)).transpose(1, 2)))
    out = torch.zeros_like(x)
    for j in range(short_length):
        merged = torch.cat([gelu(block.down[k](full[:, j * ratio + k])) for k in range(ratio)], -1)
        out[:, j] = block.outward(gelu(block.value(merged)) * gelu(block.gate(short[:, j])))
    torch.testing.assert_close(block(x, c), x + gate * out, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tokens", [5, 40])
def test_inference_gives_the_numbers_of_training(tokens: int) -> None:
    """With 40 short tokens, two layers in a row become one and GELUs are written in place."""
    block = randomized(DiffuSSMBlock(4, 2, 4, 0.0))
    x, c = torch.randn(3, tokens, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    given = x.clone(), c.clone()
    expected = block(x, c)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(block(x, c), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(x, given[0])
    assert torch.equal(c, given[1])


@pytest.mark.parametrize("name", ["log_dt", "log_decay", "frequency", "C", "D"])
@torch.no_grad()
def test_kept_spectrum_follows_its_parameters(name: str) -> None:
    """Also a change that leaves the parameter's version as it is, another length and another dtype."""
    layer = randomized(S4D(3, 8, bidirectional=True))
    u = torch.randn(2, 3, 20, dtype=torch.float64)
    torch.testing.assert_close(layer(u), recurrence(layer, u), rtol=1e-9, atol=1e-10)
    getattr(layer, name).data.mul_(0.9).add_(0.01)
    for given in (u, u, u[..., :13], u):
        torch.testing.assert_close(layer(given), recurrence(layer, given), rtol=1e-9, atol=1e-10)
    single, out = layer(u.float()), layer(u)
    torch.testing.assert_close(single.double(), out, rtol=0, atol=1e-5 * out.abs().max().item())
    state = layer.state_dict()
    assert set(state) == {"log_dt", "log_decay", "frequency", "C", "D"}


@torch.no_grad()
def test_kept_spectrum_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, u = S4D(3, 8), torch.randn(2, 3, 20)
    first = layer(u)
    monkeypatch.setattr(layer, "kernel", None)
    assert torch.equal(layer(u), first)


def test_fresh_block_is_the_identity() -> None:
    x, c = torch.randn(2, 6, 16), torch.randn(2, 16)
    assert torch.equal(DiffuSSMBlock(16, 2, 8, 0.0)(x, c), x)


@torch.no_grad()
def test_first_and_last_pixel_hear_each_other() -> None:
    model = randomized(DiffuSSM.preset("tiny", depth=1))
    model.blocks[0].ssm.log_dt.sub_(3)  # a memory of more than the 64 pixels
    x, cond = torch.randn(1, 1, 8, 8, dtype=torch.float64), model.embed(torch.tensor([3]))
    label = torch.tensor([5.0], dtype=torch.float64)
    out = model(x, label, cond)
    for source, target in [((0, 0), (7, 7)), ((7, 7), (0, 0))]:
        changed = x.clone()
        changed[0, 0, *source] += 1
        assert (model(changed, label, cond) - out)[0, 0, *target].abs() > 1e-6


@torch.no_grad()
def test_stem_and_head_keep_pixels_in_place() -> None:
    """With its blocks left out, a change of two neighbours in a row stays where it was made."""
    model = randomized(DiffuSSM.preset("tiny", patch_size=2, image_size=8))
    model.blocks = nn.ModuleList()
    x, cond = torch.randn(1, 1, 8, 8, dtype=torch.float64), model.embed(torch.tensor([3]))
    label = torch.tensor([5.0], dtype=torch.float64)
    changed = x.clone()
    changed[0, 0, 2, 4] += 1  # in the patches of rows 2, 3 and columns 4 .. 7
    difference = (model(changed, label, cond) - model(x, label, cond))[0, 0] != 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 4:8] = True
    assert torch.equal(difference, expected)


def test_published_size() -> None:
    """The paper says 673 million for XL; within 1 %, as the state's size and the embeddings are our reading."""
    with torch.device("meta"):
        model = DiffuSSM.preset("XL")
    count = sum(p.numel() for p in model.parameters())
    assert count == 668_845_456
    assert abs(count / 673e6 - 1) < 0.01
    block = model.blocks[0]
    linears = [block.inward, block.up, *block.down, block.gate, block.value, block.outward]
    assert sum(linear.weight.numel() for linear in linears) == (9 + 2 * 2) * 1152**2  # 9 D^2 + 2 M D^2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, "ratio must be at least 1, got 0"),
        ({"ratio": 3}, "image_size must be a multiple of 3, got 8"),
        ({"patch_size": 2, "ratio": 8}, "image_size must be a multiple of 16, got 8"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffuSSM.preset("tiny", **options)
