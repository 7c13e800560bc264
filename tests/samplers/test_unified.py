"""Exponential and multistep solvers: orders, limits at both ends, closed forms of their weights, identities."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_solvers import eighths
from torch import Tensor

from dinit.diffusion import PROCESSES, Process
from dinit.diffusion.continuous import EDM, GVP, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import GaussianDenoiser, MixtureDenoiser
from dinit.pipelines.call import make_sampler, to_spec
from dinit.samplers import SAMPLERS, Sampler
from dinit.samplers.multistep.adams import AdamsBashforth, ExponentialAB
from dinit.samplers.multistep.deis import DEIS
from dinit.samplers.multistep.dpm_solver import DPMpp2S, DPMpp3M, DPMSolver1, DPMSolver2, DPMSolver3
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.multistep.exponential_weights import ExponentialForm, exponential_form, gauss_legendre, weights
from dinit.samplers.multistep.linear_update import StepUpdates
from dinit.samplers.multistep.lms import LMS
from dinit.samplers.multistep.pndm import IPNDM, PNDM
from dinit.samplers.multistep.rules import (
    Corrector,
    Extrapolate,
    Pseudo,
    Rule,
    SingleStep,
    WarmUp,
    lower_at_the_end,
)
from dinit.samplers.multistep.unified import MultistepSampler, Unified
from dinit.samplers.multistep.unipc import UniPC
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler

F64 = torch.float64
FULL = ("corrected", "corrected", "corrected", "single-step")  # warm-ups that orders 1, 2, 3, 4 need


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixture(process: Process) -> MixtureDenoiser:
    """Two overlapping components in two dimensions, weights 0.3 and 0.7."""
    means = torch.tensor([[-0.6, 0.5], [0.6, -0.2]], dtype=F64).reshape(2, 1, 1, 2)
    variances = torch.tensor([[0.04, 0.09], [0.09, 0.04]], dtype=F64).reshape(2, 1, 1, 2)
    return MixtureDenoiser(process, means, variances, torch.tensor([0.3, 0.7]))


# --- order -------------------------------------------------------------------------------------------------------


def slope(errors: dict[int, float]) -> float:
    n, e = (torch.tensor(list(v), dtype=F64).log() for v in (errors.keys(), errors.values()))
    n, e = n - n.mean(), e - e.mean()
    return -float((n @ e) / (n @ n))


def measured(sampler: Sampler, process: Process, counts: tuple[int, ...] = (64, 96, 128)) -> float:
    """Of the largest error at any eighth of the way from log-SNR -3 to 3, on Gaussian data."""
    exact, errors = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2)), {}
    for n in counts:
        times = process.time_of(6 * torch.arange(n + 1, dtype=F64) / n - 3)
        x = randn(4, 1, 2, 2) * process.scales(times[0]).sigma
        errors[n] = eighths(sampler, exact, x, times)
    return slope(errors)


EVERY_ORDER: list[Sampler] = [
    solver
    for k in (1, 2, 3, 4)
    for solver in (
        *(AdamsBashforth(k, p, FULL[k - 1]) for p in ("path-velocity", "velocity", "eps", "x0", "v")),
        *(ExponentialAB(k, p, FULL[k - 1]) for p in ("eps", "x0", "v", "velocity")),
        DEIS(k, warm_up=FULL[k - 1]),
        DEIS(k, "log-rho", FULL[k - 1]),
        LMS(k, FULL[k - 1]),
        Unified((Extrapolate("x0", k, corrector=Corrector()),), "single-step" if k > 2 else "corrected"),
    )
]


@pytest.mark.parametrize("process", [VP(), EDM(), LinearFlow()], ids=str)
@pytest.mark.parametrize("sampler", EVERY_ORDER, ids=repr)
def test_every_order_is_the_claimed_one(sampler: Sampler, process: Process) -> None:
    # Order 5 - of order 4 with a corrector - is not claimed: the warm-up has 4.
    assert sampler.claims().order - 0.3 < measured(sampler, process) < sampler.claims().order + 1.3


NAMED: list[Sampler] = [
    DPMSolver1(),
    DPMSolver2(),
    DPMSolver3(),
    DPMpp2S(),
    DPMpp3M(),
    DPMpp3M("published"),
    *(UniPC(k, p, b) for k in (1, 2, 3, 4) for p in ("x0", "eps") for b in ("bh1", "bh2")),
    ExponentialAB(3, warm_up="lower-order"),
    ExponentialAB(4, warm_up="lower-order"),
    PNDM(),
    PNDM("prk"),
    IPNDM(),
]


@pytest.mark.parametrize("process", ["edm", "flow", "vp-discrete"])
@pytest.mark.parametrize("sampler", NAMED, ids=repr)
def test_named_solvers_have_their_order(sampler: Sampler, process: str) -> None:
    assert measured(sampler, PROCESSES.create(process)) > sampler.claims().order - 0.3


def test_the_published_third_order_is_second() -> None:
    """Halving the quadratic term costs DPM-Solver++(3M) its third order; so does a start of lower order."""
    assert measured(DPMpp3M("published"), VP(), (128, 256, 512)) < 2.3
    assert measured(ExponentialAB(3, warm_up="lower-order"), VP(), (128, 256, 512)) < 2.3
    assert measured(DPMpp3M(), VP(), (128, 256, 512)) > 2.9


@pytest.mark.parametrize("process", [LinearFlow(3.0), GVP()], ids=str)
@pytest.mark.parametrize(
    "sampler",
    [ExponentialAB(2), ExponentialAB(3), ExponentialAB(3, "eps"), ExponentialAB(3, "v"), AdamsBashforth(), DEIS(),
     UniPC(), DPMSolver2(), DPMSolver3(), DPMpp2S(), LMS(), PNDM()],
    ids=repr,
)  # fmt: skip
def test_order_from_pure_noise(sampler: Sampler, process: Process) -> None:
    """alpha = 0 at the first time: the log-SNR is infinite there, and its first steps never become short.

    In log-SNR they are worth second order; what is extrapolated in t, or on the straight path, keeps its own.
    """
    exact, errors = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2)), {}
    x = randn(4, 1, 2, 2)
    for n in (128, 256, 512):
        times = torch.linspace(1.0, 0.1, n + 1, dtype=F64)
        errors[n] = eighths(sampler, exact, x, times)
    straight = isinstance(sampler, AdamsBashforth)
    assert slope(errors) > (sampler.claims().order if straight else min(sampler.claims().order, 2)) - 0.4, errors


# --- weights -----------------------------------------------------------------------------------------------------


def test_quadrature_is_exact() -> None:
    nodes, mass = gauss_legendre(5)
    for k in range(10):
        assert math.isclose(float((mass * nodes**k).sum()), 1 / (k + 1), rel_tol=1e-13)


@pytest.mark.parametrize("form", [exponential_form(p, v) for p in ("eps", "x0", "v", "velocity", "path-velocity")
                                  for v in ("own", "log-snr", "t")], ids=str)  # fmt: skip
@pytest.mark.parametrize("process", [VP(), LinearFlow(), EDM()], ids=str)
def test_weights_integrate_polynomials_exactly(form: ExponentialForm, process: Process) -> None:
    """F = a cubic of its variable through four nodes: against the midpoint rule with 20,000 intervals."""
    times = process.time_of(torch.tensor([-2.0, -1.5, -0.7, 0.2, 1.4], dtype=F64))
    *before, t, s = process.scales(times).unbind()
    nodes = [t, *reversed(before)]
    cubic = lambda w: 1 - w + 0.5 * w**2 + 2 * w**3  # noqa: E731
    gain, w = weights(form, process, t, s, nodes)
    ours = sum(a * cubic(form.place(k)) for a, k in zip(w, nodes, strict=True))
    start, end = form.place(t), form.place(s)
    n = 20_000
    edges = form.interpolate(process, t, s, torch.arange(n + 1, dtype=F64) / n)
    middles = start + (torch.arange(n, dtype=F64) + 0.5) / n * (end - start)
    right = float(form.ode.scale(s)) * float((cubic(middles) * edges.diff()).sum())
    assert math.isclose(ours, right, rel_tol=1e-6, abs_tol=1e-9)
    assert math.isclose(gain, float(form.ode.scale(s) / form.ode.scale(t)), rel_tol=1e-14)


def test_weights_of_the_published_formulas() -> None:
    """phi-functions of DPM-Solver++'s multistep of orders 2 and 3, written out."""
    process = VP()
    before, last, t, s = process.scales(process.time_of(torch.tensor([-3.0, -1.0, 0.4, 2.2], dtype=F64))).unbind()
    h, h0, h1 = 0.9, 0.7, 1.0
    alpha, r0, r1 = s.floats.alpha, h0 / h, h1 / h
    phi1, phi2, phi3 = -math.expm1(-h), math.expm1(-h) / h + 1, (math.expm1(-h) + h) / h**2 - 0.5
    _, two = weights(exponential_form("x0", "log-snr"), process, t, s, [t, last], "midpoint")
    assert two == pytest.approx([alpha * phi1 * (1 + 0.5 / r0), -alpha * phi1 * 0.5 / r0], rel=1e-12)
    _, exact = weights(exponential_form("x0", "log-snr"), process, t, s, [t, last])
    assert exact == pytest.approx([alpha * (phi1 + phi2 / r0), -alpha * phi2 / r0], rel=1e-12)
    # f(tau) = D0 + D1 tau + D2 tau^2 through 0, -r0, -r0 - r1, in units of h.
    _, three = weights(exponential_form("x0", "log-snr"), process, t, s, [t, last, before])
    d = torch.tensor([[1.0, 0, 0], [1, -r0, r0**2], [1, -r0 - r1, (r0 + r1) ** 2]], dtype=F64).inverse()
    right = alpha * (phi1 * d[0] + phi2 * d[1] - 2 * phi3 * d[2])
    assert three == pytest.approx(right.tolist(), rel=1e-10)
    _, taylor = weights(exponential_form("x0", "log-snr"), process, t, s, [t, last, before], "taylor")
    assert taylor == pytest.approx((alpha * (phi1 * d[0] + phi2 * d[1] - phi3 * d[2])).tolist(), rel=1e-10)


def test_equal_steps_give_adams_bashforth() -> None:
    process = LinearFlow()
    *before, t, s = process.scales(torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], dtype=F64)).unbind()
    _, w = weights(exponential_form("path-velocity", "own"), process, t, s, [t, *reversed(before)])
    assert w == pytest.approx([-0.1 * a / 24 for a in (55, -59, 37, -9)], rel=1e-9)


def test_every_form_is_exact_for_one_image() -> None:
    """A constant F is integrated without error at any step, so data of one image comes out of the x0 form."""
    exact = GaussianDenoiser(VP(), 0.3, 0.0, (1, 2, 2))
    for sampler in (ExponentialAB(3), UniPC(3), DPMpp2S(), DPMpp3M(), AdamsBashforth(2, "x0")):
        assert torch.allclose(sampler.sample(exact, randn(3, 1, 2, 2), 4), torch.tensor(0.3, dtype=F64), atol=1e-9)


# --- identities --------------------------------------------------------------------------------------------------


def same(a: Sampler, b: Sampler, process: Process, steps: int = 9, grid: str = "log-snr") -> bool:
    exact, x = mixture(process), randn(5, 1, 1, 2)
    first, second = (s.sample(exact, x, steps, grid=grid) for s in (a, b))
    return torch.allclose(first, second, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("process", [VP(), EDM(), LinearFlow(), VPDiscrete()], ids=str)
@pytest.mark.parametrize("sampler", [ExponentialAB(1), ExponentialAB(1, "eps"), DEIS(1), LMS(1), DPMSolver1(),
                                     AdamsBashforth(1, "x0")], ids=repr)  # fmt: skip
def test_first_orders_are_ddim(sampler: Sampler, process: Process) -> None:
    assert same(sampler, DDIM(), process)


def test_schedules_of_the_mechanism() -> None:
    assert same(Unified((Extrapolate("x0", 2, variant="midpoint"),), "lower-order"), DPMpp2M(), VP())
    assert same(Unified((Extrapolate("x0", 2),), "lower-order"), DPMpp2M("heun"), EDM())
    assert same(ExponentialAB(2, "eps"), DEIS(2, "log-rho", "corrected"), VP())
    assert same(AdamsBashforth(3, "eps", "corrected"), LMS(3, "corrected"), VP())
    assert same(AdamsBashforth(3, "eps", "lower-order"), LMS(3), VP())
    assert same(AdamsBashforth(3, "path-velocity"), AdamsBashforth(3, "velocity"), LinearFlow(), grid="uniform")
    assert same(AdamsBashforth(1), Euler(), VP(), grid="uniform")
    assert same(DPMpp3M(), ExponentialAB(3), VP())
    assert same(UniPC(2, b="exact"), Unified((Extrapolate("x0", 2, corrector=Corrector()),)), VP())
    assert not same(UniPC(2), ExponentialAB(2), VP())
    assert not same(DPMpp3M("published"), DPMpp3M(), VP())


def test_a_correction_of_no_step_is_none() -> None:
    plain = Unified((Extrapolate("x0", 2, variant="midpoint"),), "lower-order")
    assert same(UniPC(2, uncorrected=tuple(range(20)), warm_up="lower-order"), plain, VP())


def test_each_step_follows_its_own_rule() -> None:
    """Two schedules that differ in one step agree before it and part there."""
    exact, x = mixture(VP()), randn(5, 1, 1, 2)
    rules = [Extrapolate("x0", 2)] * 8
    other = [*rules[:4], Extrapolate("v", 3), *rules[5:]]
    runs = [[s.x_s for s in Unified(tuple(r)).iterate(exact, x, 9, grid="log-snr")] for r in (rules, other)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][:4], runs[1][:4], strict=True))
    assert (runs[0][4] - runs[1][4]).abs().max() > 1e-6


def test_lower_orders_at_the_end() -> None:
    rules = [Extrapolate(order=3)] * 5
    assert [r.order for r in lower_at_the_end(rules, tail=False)] == [3, 3, 3, 2, 1]
    assert [r.order for r in lower_at_the_end(rules, tail=True)] == [3, 3, 3, 3, 2]


# --- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES.names())
@pytest.mark.parametrize("name", [n for n in SAMPLERS if issubclass(SAMPLERS[n], MultistepSampler)])
def test_both_singular_ends_are_finite(name: str, process: str) -> None:
    """From t = 1, where alpha may be 0, to t = 0, where sigma may be."""
    made = PROCESSES.create(process)
    exact, x = mixture(made), randn(3, 1, 1, 2) * made.scales(1.0).sigma
    for count in (2, 3, 6):
        times = torch.linspace(1.0, 0.0, count, dtype=F64)
        found = SAMPLERS.create(name).sample(exact, x, grid=times, initial_state=x, end="state")
        assert found.isfinite().all()


def test_evaluations_are_counted_with_the_start() -> None:
    exact, x = mixture(VP()), randn(2, 1, 1, 2)
    for sampler in (PNDM(), PNDM("prk"), ExponentialAB(4, warm_up="single-step"), DPMSolver3(), UniPC(4)):
        for steps in (1, 2, 3, 7):
            assert list(sampler.iterate(exact, x, steps))[-1].nfe == sampler.nfe(steps)


@pytest.mark.parametrize("warm_up", ["corrected", "lower-order", "single-step"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_evaluations_are_counted_at_every_order_and_warm_up(order: int, warm_up: WarmUp) -> None:
    exact, x = mixture(VP()), randn(2, 1, 1, 2)
    for made in (AdamsBashforth, ExponentialAB, UniPC, LMS):
        sampler = made(order, warm_up=warm_up)
        for steps in (1, 2, 6):
            run = sampler.iterate(exact, x, steps, end="posterior-mean")
            assert list(run)[-1].nfe == sampler.nfe(steps), sampler


def test_a_schedule_claims_the_order_of_its_least_step() -> None:
    rules = (Extrapolate("x0", 3), Extrapolate("x0", 1), Extrapolate("x0", 2))
    for schedule in (rules, rules[::-1], rules[1:], rules[:2]):
        least = min(rule.claimed_order("lower-order") for rule in schedule)
        assert Unified(schedule, "lower-order").claims().order == least == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ExponentialAB(5), "1, 2, 3 or 4; got 5"),
        (lambda: ExponentialAB(3, "score"), "'x0', 'eps', 'v', 'velocity'; got 'score'"),  # type: ignore[arg-type]
        (lambda: UniPC(b="bh3"), "'bh1', 'bh2', 'exact'"),  # type: ignore[arg-type]
        (lambda: DEIS(variable="x"), "'t', 'rho', 'log-rho'"),  # type: ignore[arg-type]
        (lambda: DPMpp3M("taylor"), "'exact', 'published'"),  # type: ignore[arg-type]
        (lambda: PNDM("heun"), "'plms', 'prk'"),  # type: ignore[arg-type]
        (lambda: Unified(()), "at least one rule"),
        (lambda: Extrapolate(start_steps_back=3), "start_steps_back must be 0, 1 or 2"),
        (lambda: SingleStep("eps", (1.5,)), "fractions in"),
        (lambda: Extrapolate(variable="lambda"), "'own', 'log-snr', 't'"),  # type: ignore[arg-type]
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_schedule_survives_its_config() -> None:
    first = Extrapolate("v", 2, corrector=Corrector("bh1"))
    rules = (first, SingleStep("x0", (0.4,)), Pseudo("eps", 3, max_step_ratio=2.0), Extrapolate(variant="taylor"))
    sampler = Unified(rules, "single-step")
    assert SAMPLERS.create(sampler.to_config()) == sampler
    assert json.loads(json.dumps(sampler.to_config(), allow_nan=False)) == json.loads(
        json.dumps(sampler.to_config())
    )
    assert make_sampler(json.loads(json.dumps(to_spec(sampler)))) == sampler  # as the record of a call has it


def numbers(step: StepUpdates) -> list[object]:
    """All that a step does, as plain values."""
    updates = [
        *(update for _, update in step.stages),
        step.advance,
        *([step.correction] if step.correction else []),
    ]
    return [[at.floats for at, _ in step.stages], *((u.form, *u[1:]) for u in updates)]


@pytest.mark.parametrize("process", ["vp-discrete", "flow", "edm", "ve"])
@pytest.mark.parametrize(
    "rule",
    [
        SingleStep("eps", (1 / 3, 2 / 3)),
        SingleStep("v", (0.5, 1.0), variable="t", variant="midpoint"),
        Extrapolate("x0", 4, corrector=Corrector("bh1")),
        Extrapolate("eps", 3, variable="t", max_step_ratio=0.95, difference_weights=(1.1, 0.9)),
        Extrapolate("path-velocity", 2, variable="own", corrector=Corrector()),
        Extrapolate("x0", 2, start_steps_back=2),
        Extrapolate("x0", 3, variant="taylor"),
        Pseudo("eps", 4, corrector=Corrector()),
    ],
    ids=str,
)
def test_coefficients_at_once_are_those_one_by_one(rule: Rule, process: str) -> None:
    """To the last bit, from alpha = 0 on and to sigma = 0, with the irregular steps between."""
    path = PROCESSES.create(process)
    times = torch.linspace(1, 0, 26, dtype=torch.float64) ** 1.5
    points, again = path.scales(times).unbind(), path.scales(times).unbind()
    at_once = rule.all_updates(path, points, range(25), "corrected")
    one_by_one = [rule.updates(path, again, i, "corrected") for i in range(25)]
    assert [*map(numbers, at_once)] == [*map(numbers, one_by_one)]
