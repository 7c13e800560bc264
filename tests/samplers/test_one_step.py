"""One-step solvers: identities between them, orders, the start from alpha = 0, churn, restarts, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES
from dinit.diffusion.continuous import EDM, GVP, VE, VP, LinearFlow
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import SAMPLERS, RecordedNoise, Sampler
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.edm import DPM2, EDMEuler, EDMHeun
from dinit.samplers.ode.euler import Heun
from dinit.samplers.ode.flow import FlowEuler, FlowHeun, FlowMidpoint, FlowTurbo
from dinit.samplers.ode.restart import Interval, Restart
from dinit.samplers.ode.runge_kutta import HEUN3, MIDPOINT, RK4, RK4_CLASSIC, RK38, TRAPEZOID, Heun3, Midpoint

F64 = torch.float64
ONE_STEP = [Midpoint(), Heun3(), RK4(), RK4("3/8"), FlowHeun(), FlowMidpoint(), FlowTurbo(), EDMEuler(), EDMHeun()]
ONE_STEP += [EDMHeun(alpha=0.5), EDMHeun(alpha=2 / 3, variable="t"), DPM2()]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian(process) -> GaussianDenoiser:
    return GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2))


@pytest.mark.parametrize("tableau", [MIDPOINT, TRAPEZOID, HEUN3, RK4_CLASSIC, RK38], ids=str)
def test_tableaux_meet_the_order_conditions(tableau) -> None:
    """Rows sum to their node; sum b c^k = 1 / (k + 1) up to the order; Butcher's conditions of orders 3 and 4."""
    c, b = [0.0, *tableau.nodes], tableau.weights
    a = [[*row, *[0.0] * (len(b) - len(row))] for row in ((), *tableau.stages)]
    order = {2: 2, 3: 3, 4: 4}[len(b)]
    assert all(math.isclose(sum(row), node, abs_tol=1e-15) for row, node in zip(a, c, strict=True))
    for k in range(order):
        assert math.isclose(sum(w * x**k for w, x in zip(b, c, strict=True)), 1 / (k + 1), rel_tol=1e-14)
    ac = [sum(x * y for x, y in zip(row, c, strict=True)) for row in a]
    if order >= 3:
        assert math.isclose(sum(x * y for x, y in zip(b, ac, strict=True)), 1 / 6, rel_tol=1e-14)
    if order >= 4:
        acc = [sum(x * y * y for x, y in zip(row, c, strict=True)) for row in a]
        aac = [sum(x * y for x, y in zip(row, ac, strict=True)) for row in a]
        assert math.isclose(sum(x * y * z for x, y, z in zip(b, c, ac, strict=True)), 1 / 8, rel_tol=1e-14)
        assert math.isclose(sum(x * y for x, y in zip(b, acc, strict=True)), 1 / 12, rel_tol=1e-14)
        assert math.isclose(sum(x * y for x, y in zip(b, aac, strict=True)), 1 / 24, rel_tol=1e-14)


@pytest.mark.parametrize("process", [LinearFlow(3.0), GVP(), VP(), EDM()], ids=str)
@pytest.mark.parametrize("sampler", ONE_STEP, ids=repr)
def test_order_from_the_first_time(sampler: Sampler, process) -> None:
    """From t = 1, where alpha may be 0 and the noise level infinite, on times even in t."""
    exact, x = gaussian(process), randn(4, 1, 2, 2)
    x = x * process.prior_std(process.scales(1.0))
    end = exact.flow(x, 1.0, 0.2)
    errors = []
    for n in (64, 128, 256):
        times = torch.linspace(1.0, 0.2, n + 1, dtype=F64)
        errors.append(float((sampler.sample(exact, x, grid=times, initial_state=x, end="state") - end).abs().max()))
    if errors[-1] > 1e-11:
        assert math.log2(errors[0] / errors[-1]) / 2 > sampler.claims().order - 0.35, errors


def test_on_edms_process_the_variable_is_the_time() -> None:
    exact, x = gaussian(EDM()), randn(3, 1, 2, 2)
    truth = Heun().sample(exact, x, 12)
    assert torch.allclose(EDMHeun().sample(exact, x, 12), truth, rtol=0, atol=1e-12)
    assert torch.allclose(EDMHeun(variable="t").sample(exact, x, 12), truth, rtol=0, atol=1e-12)
    assert torch.allclose(
        EDMHeun(alpha=0.5).sample(exact, x, 12), Midpoint().sample(exact, x, 12), rtol=0, atol=1e-10
    )


def test_on_the_linear_path_flow_solvers_step_in_t() -> None:
    exact, x = gaussian(LinearFlow()), randn(3, 1, 2, 2)
    for flow, plain in ((FlowHeun(), Heun()), (FlowMidpoint(), Midpoint())):
        assert torch.allclose(flow.sample(exact, x, 9), plain.sample(exact, x, 9), rtol=0, atol=1e-12)
    shifted = gaussian(LinearFlow(3.0))
    assert not torch.allclose(FlowHeun().sample(shifted, x, 9), Heun().sample(shifted, x, 9), atol=1e-4)
    times = LinearFlow(3.0).time_of(LinearFlow().log_snr(torch.linspace(1, 0.1, 10, dtype=F64)))
    same = FlowHeun().sample(exact, x, grid=torch.linspace(1, 0.1, 10, dtype=F64))
    assert torch.allclose(FlowHeun().sample(shifted, x, grid=times), same, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES.names())
def test_euler_in_the_noise_level_is_ddim(process: str) -> None:
    exact, x = gaussian(PROCESSES.create(process)), randn(3, 1, 2, 2)
    assert torch.allclose(EDMEuler().sample(exact, x, 12), DDIM().sample(exact, x, 12), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", [EDMHeun(), DPM2(), EDMHeun(alpha=0.5)], ids=repr)
def test_solvers_in_the_noise_level_see_no_process(sampler: Sampler) -> None:
    """On x / alpha every path with the same noise levels gives the same samples."""
    levels = torch.logspace(1.5, -1.5, 14, dtype=F64)
    x, found = randn(3, 1, 2, 2), []
    for process in (VP(), EDM(), LinearFlow(), GVP()):
        times = process.time_of_noise_level(levels)
        start = process.scales(times[0])
        found.append(sampler.sample(gaussian(process), x, grid=times, initial_state=x * start.sigma))
    assert max(float((one - found[0]).abs().max()) for one in found) < 1e-10


def test_pseudo_corrector_by_hand() -> None:
    exact, x = gaussian(LinearFlow()), randn(2, 1, 2, 2)
    times = torch.tensor([1.0, 0.7, 0.4, 0.2], dtype=F64)
    v = lambda y, t: exact(y, float(t), exact.condition(None, 2)).velocity  # noqa: E731
    y, d = x, v(x, 1.0)
    for t, s in ((1.0, 0.7), (0.7, 0.4), (0.4, 0.2)):
        later = v(y + (s - t) * d, s)
        y, d = y + (s - t) / 2 * (d + later), later
    steps = list(FlowTurbo().iterate(exact, x, grid=times, end="state"))
    assert torch.allclose(steps[-1].x_s, y, rtol=0, atol=1e-12)
    assert [step.nfe for step in steps] == [2, 3, 4]
    first = Heun().sample(exact, x, grid=times[:2], end="state")
    assert torch.allclose(steps[0].x_s, first, rtol=0, atol=1e-12), "the first step is Heun's"


@pytest.mark.parametrize("sampler", [FlowHeun(), EDMHeun(), DPM2(), EDMEuler(), Restart()], ids=repr)
def test_a_step_onto_clean_data_is_finite(sampler: Sampler) -> None:
    exact, x = gaussian(VP()), randn(2, 1, 2, 2)
    times = torch.tensor([1.0, 0.5, 0.1, 0.0], dtype=F64)
    a = sampler.sample(exact, x, grid=times, end="state")
    assert a.isfinite().all()
    # Flow Heun's corrector looks at the clean end, and a restart starts there; the others take the mean.
    if not isinstance(sampler, FlowHeun | Restart):
        assert torch.allclose(a, sampler.sample(exact, x, grid=times), rtol=0, atol=1e-12)


# --- churn and restart -------------------------------------------------------------------------------------------


def test_churn_by_hand() -> None:
    """One step from t to s: the noise is raised by gamma = min(churn / steps, sqrt 2 - 1), then Heun."""
    process = VP()
    exact, x, z = gaussian(process), randn(2, 1, 2, 2), randn(2, 1, 2, 2, seed=1)
    times = torch.tensor([0.5, 0.4, 0.3], dtype=F64)
    t, s = process.scales(times[0]), process.scales(times[1])
    u = t.sigma / t.alpha
    for s_churn, gamma in ((0.6, 0.2), (9.0, math.sqrt(2) - 1)):
        sampler = EDMHeun(s_churn=s_churn, s_noise=1.1)
        draws = RecordedNoise(step=torch.stack([z, z]))
        step = next(
            iter(sampler.iterate(exact, x, grid=times, initial_state=x, noise_source=draws))
        )  # 3 levels in all
        up = process.scales(process.time_of_noise_level((1 + gamma) * u))
        raised = up.alpha * (x / t.alpha + 1.1 * ((1 + gamma) ** 2 - 1) ** 0.5 * u * z)
        by_hand = EDMHeun().sample(exact, x, grid=torch.stack([up.time, s.time]), initial_state=raised, end="state")
        assert torch.allclose(step.x_s, by_hand, rtol=0, atol=1e-10)


def test_churn_keeps_to_its_interval_and_to_the_denoisers_times() -> None:
    exact, x = gaussian(VE()), randn(2, 1, 2, 2)
    plain = EDMHeun().sample(exact, x, 9)
    outside = EDMHeun(s_churn=5.0, s_tmin=1e4, s_tmax=1e5)
    assert torch.equal(outside.sample(exact, x, 9, noise_source=RecordedNoise()), plain)
    inside = EDMHeun(s_churn=5.0, s_tmin=1.0, s_tmax=10.0)
    assert not torch.allclose(inside.sample(exact, x, 9), plain)
    asked: list[float] = []

    class Watching(GaussianDenoiser):
        def __call__(self, x_t, t, cond):
            asked.append(self.scales(t).floats.time)
            return super().__call__(x_t, t, cond)

    for sampler in (EDMHeun(s_churn=50.0), DPM2(s_churn=50.0), EDMEuler(s_churn=50.0)):
        sampler.sample(Watching(VE(), 0.3, 0.5, (1, 2, 2)), x, 9)
    assert max(asked) == 1.0


@pytest.mark.parametrize("sampler", [EDMHeun(s_churn=10.0), DPM2(s_churn=10.0), EDMEuler(s_churn=10.0), Restart()])
@pytest.mark.parametrize("process", [VP(), EDM(), LinearFlow()], ids=str)
def test_stochastic_runs_keep_the_gaussian(sampler: Sampler, process) -> None:
    """Mean and spread of the data, from noise: 20,000 images of 4 pixels, in five standard errors and the bias."""
    exact = gaussian(process)
    draws = RecordedNoise(step=[randn(20_000, 1, 2, 2, seed=i) for i in range(2, 250)])
    x = sampler.sample(exact, randn(20_000, 1, 2, 2, seed=1), 120, grid="karras", noise_source=draws)
    bias = 0.04 if isinstance(sampler, EDMEuler) else 0.002  # first order, and more of it with churn
    assert abs(float(x.mean()) - 0.3) < 5 * 0.5 / math.sqrt(80_000) + bias
    assert abs(float(x.std()) / 0.5 - 1) < 5 / math.sqrt(160_000) + 2 * bias


def test_restart_by_hand() -> None:
    """Down to the interval's lower end, up by noise to its top, down again in Karras's levels, twice."""
    exact, x, z = gaussian(EDM()), randn(2, 1, 2, 2), randn(2, 2, 1, 2, 2, seed=1)
    times = torch.tensor([1.0, 0.5, 0.002, 0.001], dtype=F64)  # sigma 80, 40, 0.16, 0.08
    sampler = Restart((Interval(0.2, 1.0, steps=3, repeats=2),))
    steps = list(
        sampler.iterate(
            exact, x, grid=times, noise_source=RecordedNoise(step=torch.cat([torch.zeros(2, *z.shape[1:]), z]))
        )
    )
    y = EDMHeun().sample(exact, x, grid=times[:3], end="state")
    root = lambda v: v ** (1 / 7)  # noqa: E731
    down = [1.0, ((root(1.0) + root(0.16)) / 2) ** 7, 0.16]
    for noise in z:
        y = y + math.sqrt(1 - 0.16**2) * noise
        y = EDMHeun().sample(exact, y, grid=torch.tensor(down, dtype=F64) / 80, initial_state=y, end="state")
    assert torch.allclose(steps[1].x_s, y, rtol=0, atol=1e-9)
    assert [step.nfe for step in steps] == [2, 2 + 2 + 2 * 4, 2 + 2 + 2 * 4 + 2, 15]


def test_nothing_crossed_is_no_restart() -> None:
    exact, x = gaussian(VP()), randn(2, 1, 2, 2)
    a = Restart().sample(exact, x, 4, grid="uniform", noise_source=RecordedNoise())
    assert torch.allclose(a, EDMHeun().sample(exact, x, 4, grid="uniform"), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EDMHeun(s_churn=-1.0), "must be >= 0"),
        (lambda: EDMHeun(s_tmin=2.0, s_tmax=1.0), "s_tmin <= s_tmax"),
        (lambda: EDMHeun(alpha=0.0), r"alpha must be in \(0, 1\]"),
        (lambda: EDMHeun(variable="sigma"), "'noise-level' or 't'"),  # type: ignore[arg-type]
        (lambda: RK4("classical"), "did you mean 'classic'"),  # type: ignore[arg-type]
        (lambda: Interval(0.3, 0.1), "low < high"),
        (lambda: Interval(0.1, 0.3, steps=1), "at least 2 noise levels"),
        (lambda: Restart(()), "at least one interval"),
        (
            lambda: Restart((Interval(0.1, 100.0),)).sample(gaussian(VE()), randn(1, 1, 2, 2), 9),
            "first noise level",
        ),
        (
            lambda: RK4().sample(gaussian(VP()), randn(1, 1, 2, 2), grid=torch.tensor([1.0, 0.0]), end="state"),
            "infinite",
        ),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_restart_intervals_may_come_from_a_recipe() -> None:
    made = SAMPLERS.create(
        "restart", intervals=[{"low": 1.0, "high": 2.0}, {"low": 0.1, "high": 0.4, "repeats": 3}]
    )
    assert isinstance(made, Restart)
    assert made.intervals == (Interval(1.0, 2.0), Interval(0.1, 0.4, repeats=3))
    assert made.claims().draws_per_step == 5
    assert not torch.allclose(
        made.sample(gaussian(VP()), randn(1, 1, 2, 2), 20),
        FlowEuler().sample(gaussian(VP()), randn(1, 1, 2, 2), 20),
    )
