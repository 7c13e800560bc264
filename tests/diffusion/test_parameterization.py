"""Parameterizations: round trips between all pairs, singular pairs, the tables of EDM, learned variance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.diffusion import (
    PARAMETERIZATIONS,
    PROCESSES,
    BackboneDenoiser,
    Condition,
    Denoised,
    Denoiser,
    Process,
    Scales,
    WrappedDenoiser,
)
from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.diffusion.parameterization import EDMPreconditioning, check_pair

F64 = torch.float64
SINGULAR_AT_1 = {"flow", "gvp"}  # alpha = 0 there


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def noisy(process: Process, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Scales]:
    x0, eps = randn(1, 5, 2, 3, 3), randn(2, 5, 2, 3, 3)
    k = process.scales(t).like(x0)
    return x0, eps, k.alpha * x0 + k.sigma * eps, k


@pytest.mark.parametrize("process", PROCESSES.names())
@pytest.mark.parametrize("name", PARAMETERIZATIONS.names())
def test_every_pair_reads_back_x0(name: str, process: str) -> None:
    parameterization, made = PARAMETERIZATIONS.create(name), PROCESSES.create(process)
    times = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.95], dtype=F64)
    for t in (0.2, 0.5, 0.9, times):
        x0, eps, x_t, k = noisy(made, t)
        found = parameterization.posterior_mean(parameterization.target(x0, eps, k), x_t, k)
        # The reading of eps divides by alpha: its rounding grows with the noise level.
        assert ((found - x0).abs() / (1 + k.noise_level)).max() < 1e-12


@pytest.mark.parametrize("process", PROCESSES.names())
def test_round_trip_through_all_parameterizations(process: str) -> None:
    """From each to each and back: out → x0, eps → other out → x0, eps → out, to 1e-12."""
    x0, eps, x_t, k = noisy(PROCESSES.create(process), 0.4)
    every = [PARAMETERIZATIONS.create(name) for name in PARAMETERIZATIONS]
    for one in every:
        out = one.target(x0, eps, k)
        for other in every:
            d = Denoised(x_t, one.posterior_mean(out, x_t, k), k)
            other_out = other.target(d.x0, d.eps, k)
            back = Denoised(x_t, other.posterior_mean(other_out, x_t, k), k)
            again = one.target(back.x0, back.eps, k)
            assert ((again - out).abs().max() / out.abs().max().clamp(min=1)) < 1e-12


def test_coefficients_are_the_definitions() -> None:
    x0, eps, x_t, k = noisy(VP(), 0.6)
    target = {name: PARAMETERIZATIONS.create(name).target(x0, eps, k) for name in PARAMETERIZATIONS}
    assert torch.equal(target["epsilon"], eps)
    assert torch.equal(target["x0"], x0)
    assert torch.allclose(target["v"], k.alpha * eps - k.sigma * x0)
    assert torch.allclose(target["velocity"], k.d_alpha * x0 + k.d_sigma * eps)
    assert torch.allclose(target["score"], -(x_t - k.alpha * x0) / k.sigma**2)


def test_edm_preconditioning_is_table_1() -> None:
    """Karras et al. 2022: D = c_skip x + c_out F(c_in x), on alpha = 1."""
    parameterization, sd = EDMPreconditioning(0.5), 0.5
    x0, eps, x_t, k = noisy(EDM(), 0.03)
    total = k.sigma**2 + sd**2
    c_skip, c_out, c_in = sd**2 / total, k.sigma * sd / total.sqrt(), 1 / total.sqrt()
    assert torch.allclose(parameterization.input_scale(k), c_in)
    assert torch.allclose(parameterization.target(x0, eps, k), (x0 - c_skip * x_t) / c_out)
    assert torch.allclose(EDM().noise_label(k), k.sigma.log() / 4)
    for process in (VP(), LinearFlow()):  # unit variance in and out, for data of that deviation
        for t in (0.1, 0.5, 0.9):
            scales = process.scales(t)
            p, q = parameterization.coefficients(scales)
            assert torch.allclose(p**2 * sd**2 + q**2, torch.ones_like(p))
            scaled = parameterization.input_scale(scales) ** 2 * (scales.alpha**2 * sd**2 + scales.sigma**2)
            assert torch.allclose(scaled, torch.ones_like(p))


@pytest.mark.parametrize("process", [*PROCESSES.names(), "zero-snr"])
@pytest.mark.parametrize("name", PARAMETERIZATIONS.names())
def test_singular_pairs_are_refused_and_no_other(name: str, process: str) -> None:
    zero = process == "zero-snr"
    made = VPDiscrete(zero_terminal_snr=True) if zero else PROCESSES.create(process)
    parameterization = PARAMETERIZATIONS.create(name)
    if name.removeprefix("reversed-") in ("epsilon", "score") and (zero or process in SINGULAR_AT_1):
        with pytest.raises(ValueError, match="t_max"):
            check_pair(made, parameterization)
        check_pair(made, parameterization, t_max=0.999)
    else:
        check_pair(made, parameterization)
        x0, eps, x_t, k = noisy(made, 1.0)
        assert parameterization.posterior_mean(parameterization.target(x0, eps, k), x_t, k).isfinite().all()


@pytest.mark.parametrize("name", PARAMETERIZATIONS.names())
@pytest.mark.parametrize("process", PROCESSES.names())
def test_a_clean_state_is_its_own_posterior_mean(name: str, process: str) -> None:
    made = PROCESSES.create(process)
    if float(made.scales(0.0).sigma) > 0:
        pytest.skip("this process is never clean")
    x = randn(3, 2, 1, 2, 2)
    k = made.scales(0.0)
    d = Denoised(x, PARAMETERIZATIONS.create(name).posterior_mean(randn(4, 2, 1, 2, 2), x, k), k)
    assert torch.equal(d.x0, x)
    assert d.eps.abs().max() == 0


@pytest.mark.parametrize("name", PARAMETERIZATIONS.names())
def test_config_round_trip(name: str) -> None:
    made = PARAMETERIZATIONS.create(name)
    assert PARAMETERIZATIONS.create(made.to_config()) == made
    other = EDMPreconditioning(0.7)
    assert PARAMETERIZATIONS.create(other.to_config()) == other


# --- denoisers ---------------------------------------------------------------------------------------------------


class Backbone:
    """Says what it was told: a stub of four classes that may learn a variance."""

    num_classes, in_channels, dtype = 4, 2, F64

    def __init__(self, learned: bool) -> None:
        self.out_channels = 4 if learned else 2
        self.seen: list[tuple[Tensor, Tensor]] = []

    def embed(self, labels: Tensor) -> Tensor:
        return labels[:, None].double()

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        self.seen.append((x, noise_label))
        out = x.sin() + cond.reshape(-1, 1, 1, 1)
        return torch.cat([out, torch.full_like(out, -0.5)], dim=1) if self.out_channels == 4 else out


def test_backbone_denoiser_reads_its_network() -> None:
    network, process = Backbone(learned=True), EDM()
    parameterization = EDMPreconditioning(0.5)
    denoiser = BackboneDenoiser(network, process, parameterization)
    x, cond = randn(5, 3, 2, 3, 3), denoiser.condition([0, 3, 4], 3)
    assert cond.is_null.tolist() == [False, False, True]
    for t in (0.2, torch.tensor([0.2, 0.4, 0.9], dtype=F64)):
        d = denoiser(x, t, cond)
        k = process.scales(t).like(x)
        seen, label = network.seen[-1]
        assert torch.equal(seen, x * parameterization.input_scale(k))
        assert torch.allclose(label.double(), process.scales(t).sigma.log() / 4, rtol=1e-6)
        out = seen.sin() + cond.embedding.reshape(-1, 1, 1, 1)
        assert torch.allclose(d.x0, parameterization.posterior_mean(out, x, k))
        assert d.variance_fraction is not None
        assert torch.equal(d.variance_fraction, torch.full_like(x, 0.25))
    with pytest.raises(ValueError, match="singular"):
        BackboneDenoiser(network, LinearFlow(), PARAMETERIZATIONS.create("epsilon"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("t", [0.0371, torch.tensor([0.0371, 0.4, 0.9], dtype=F64)], ids=["one", "each"])
def test_input_is_scaled_before_it_is_rounded_to_the_networks_dtype(dtype: torch.dtype, t: float | Tensor) -> None:
    """Rounded first, a state at sigma = 80 keeps three digits and loses more in the product."""
    network, process = Backbone(learned=False), EDM()
    network.dtype = dtype  # type: ignore[attr-defined]
    parameterization = EDMPreconditioning(0.5)
    denoiser = BackboneDenoiser(network, process, parameterization)
    x = (80 * randn(5, 3, 2, 3, 3)).float()
    denoiser(x, t, denoiser.condition([0, 3, 4], 3))
    seen, _ = network.seen[-1]
    scale = parameterization.input_scale(process.scales(t).like(x))
    assert seen.dtype == dtype
    assert torch.equal(seen, (x * scale).to(dtype))


@pytest.mark.parametrize("null_class", [True, False])
def test_labels_run_up_to_the_null_class_where_there_is_one(null_class: bool) -> None:
    network = Backbone(learned=False)
    network.null_class = null_class  # type: ignore[attr-defined]
    denoiser = BackboneDenoiser(network, EDM(), EDMPreconditioning(0.5))
    last = network.num_classes - 1 + null_class
    assert denoiser.check_labels([0, last], 2).tolist() == [0, last]
    for wrong in (-1, last + 1):
        with pytest.raises(ValueError, match="labels must be in 0"):
            denoiser.check_labels([0, wrong], 2)


def test_learned_variance_is_eq_15_on_ddpm_tables() -> None:
    """Between log beta and log beta-tilde of the chain, which are computed here from the betas alone."""
    chain = VPDiscrete()
    alpha_bar = chain.alphas**2
    x = randn(6, 2, 1, 2, 2)
    for i in (1, 10, 500, 999):
        beta = 1 - alpha_bar[i] / alpha_bar[i - 1]
        tilde = beta * (1 - alpha_bar[i - 1]) / (1 - alpha_bar[i])
        t, s = (chain.scales((j + 1) / 1000) for j in (i, i - 1))
        for fraction in (0.0, 0.3, 1.0):
            d = Denoised(x, x, t, torch.full_like(x, fraction))
            expected = fraction * beta.log() + (1 - fraction) * tilde.log()
            assert torch.allclose(d.log_variance(s), expected.expand_as(x), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="no learned variance"):
        Denoised(x, x, t).log_variance(s)


def test_denoised_quantities_belong_together() -> None:
    x0, eps, x_t, k = noisy(VP(), torch.tensor([0.05, 0.3, 0.5, 0.7, 0.95], dtype=F64))
    d = Denoised(x_t, x0, k)
    assert torch.allclose(d.eps, eps, atol=1e-12)
    assert torch.allclose(d.score, -eps / k.sigma, atol=1e-10)
    # The probability-flow ODE of Song et al. 2021, Eq. 13: f x - g² score / 2.
    f, g2 = VP().drift(k.time), VP().diffusion_squared(k.time)
    assert torch.allclose(d.velocity, f * x_t - g2 / 2 * d.score, atol=1e-9)
    first, second = Denoised(x_t[:4], x0[:4], k.map(lambda v: v[:4])).parts(2)
    assert torch.equal(torch.cat([first.eps, second.eps]), d.eps[:4])


def test_given_fills_in_the_labels() -> None:
    denoiser = BackboneDenoiser(Backbone(False), VP(), PARAMETERIZATIONS.create("v"))
    fixed = denoiser.given([1, 2])
    x = randn(7, 2, 2, 3, 3)
    assert torch.equal(
        fixed(x, 0.5, fixed.condition(None, 2)).x0, denoiser(x, 0.5, denoiser.condition([1, 2], 2)).x0
    )
    assert torch.equal(fixed.condition([0, 0], 2).embedding, denoiser.condition([0, 0], 2).embedding)


def test_a_wrapper_forwards_every_attribute_and_method() -> None:
    """Every public name of Denoiser is the inner one's, away from its default; a wrapper may set its own."""

    class Inner(Denoiser):
        process, num_classes, t_min, t_max = VP(), 7, 0.02, 0.9
        null_class, learns_variance, required_outputs = False, True, frozenset({"renoise_eps"})

        def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
            return Denoised(x_t, 2 * x_t, self.scales(t))

        def embed(self, labels: Tensor) -> Tensor:
            return labels[:, None] + 0.5

        def encode(self, labels: Tensor) -> Condition:
            return replace(super().encode(labels), embedding=labels[:, None] + 0.25)

    inner = Inner()
    wrapped = WrappedDenoiser(WrappedDenoiser(inner))
    names = [name for name in {*Denoiser.__annotations__, *vars(Denoiser)} if not name.startswith("_")]
    assert len(names) > 10
    for name in set(names) - {"condition", "given", "scales"}:
        assert name in vars(WrappedDenoiser), f"{name} is not forwarded"
        if not callable(getattr(inner, name)):
            assert getattr(wrapped, name) == getattr(inner, name) != getattr(Denoiser, name, None)
    assert torch.equal(wrapped.embed(torch.arange(3)), inner.embed(torch.arange(3)))
    cond = wrapped.condition([3], 1)
    assert cond.embedding.item() == 3.25
    assert torch.equal(wrapped(torch.ones(1, 1, 2, 2), 0.5, cond).x0, torch.full((1, 1, 2, 2), 2.0))
    with pytest.raises(ValueError, match="without a null class"):
        wrapped.check_labels(None, 2)
    wrapped.t_max = 0.5
    assert (wrapped.t_max, inner.t_max) == (0.5, 0.9)
    assert wrapped.given([4]).condition(None, 1).labels.tolist() == [4]  # type: ignore[union-attr]
