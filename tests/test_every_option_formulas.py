"""Formulas on made numbers: what orders, moments and closed forms leave free, written out by hand.

A fault in what training and sampling share, in a constant or in a default moves both sides of an identity; a number
does not move with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
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
    RunContext,
    Scales,
)
from dinit.diffusion.continuous import EDM, VE, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete, beta_schedule
from dinit.likelihood.bound import variational_bound
from dinit.models.analytic import GaussianDenoiser
from dinit.models.base import BACKBONES
from dinit.pipelines.generate import Pipeline
from dinit.samplers import GRIDS, SAMPLERS, NoiseSource, RecordedNoise, invert
from dinit.samplers.guidance.apg import APG, projected
from dinit.samplers.guidance.autoguidance import Autoguidance
from dinit.samplers.guidance.cads import noised
from dinit.samplers.guidance.noise_damped import NoiseDamped
from dinit.samplers.multistep.deis import DEIS
from dinit.samplers.multistep.dpm_solver import DPMpp3M
from dinit.samplers.multistep.lms import LMS
from dinit.samplers.multistep.pndm import PNDM
from dinit.samplers.multistep.rules import lower_at_the_end
from dinit.samplers.ode import rk45
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.dpm_adaptive import Controller, DPMAdaptive
from dinit.samplers.ode.edm import EDMEuler
from dinit.samplers.ode.restart import Interval, Restart
from dinit.samplers.sde.flow_sde import FlowSDE

F64 = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


class Says(Denoiser):
    """Answers with made values of eps, one a call; keeps the states, times and conditions of the calls."""

    num_classes = 2

    def __init__(self, process: Any, eps: Sequence[float] = (0.5, -0.3, 0.2, 0.7)) -> None:
        self.process, self.t_min, self.eps = process, process.t_min, eps
        self.calls: list[tuple[float, float, Condition]] = []

    def embed(self, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), 1, dtype=F64)

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        k = self.scales(t)
        said = self.eps[len(self.calls) % len(self.eps)]
        self.calls.append((float(x_t.flatten()[0]), float(k.time.flatten()[0]), cond))
        return Denoised(x_t, (x_t - k.sigma * said) / k.alpha, k.like(x_t))


def ddim(process: Any, x: float, eps: float, t: float, s: float) -> float:
    a, b = process.scales(t), process.scales(s)
    return float(b.alpha / a.alpha * x + (b.sigma - b.alpha / a.alpha * a.sigma) * eps)


# --- processes -------------------------------------------------------------------------------------------------

TIME_INPUTS = {
    "edm": math.log(20) / 4,
    "flow": 250.0,
    "gvp": 250.0,
    "sub-vp": 249.75,
    "ve": 0.01 * 5000**0.25,
    "ve-discrete": 749.25,
    "vp": 249.75,
    "vp-betas": 249.0,
    "vp-discrete": 249.0,
}
CLEANEST = {
    "edm": 0.002 / 80,
    "flow": 1e-3,
    "gvp": 1e-3,
    "sub-vp": 1e-3,
    "ve": 0.0,
    "ve-discrete": 0.0,
    "vp": 1e-3,
    "vp-betas": 1e-3,
    "vp-discrete": 1e-3,
}


class Spy(torch.nn.Module):
    """A network that answers 0 and keeps what it was given."""

    num_classes, in_channels, out_channels = 2, 1, 1

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.given: list[tuple[Tensor, Tensor, Tensor]] = []

    def embed(self, labels: Tensor) -> Tensor:
        return torch.full((len(labels), 1), 0.1)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        self.given.append((x, noise_label, cond))
        return torch.zeros_like(x)


def given_to_network(
    process: Any, parameterization: Any, t: float | Tensor, dtype: torch.dtype = F64
) -> tuple[Tensor, Tensor, Tensor]:
    """x, time and condition as a network of that dtype gets them."""
    spy = Spy(dtype)
    denoiser = BackboneDenoiser(spy, process, parameterization)
    count = t.numel() if isinstance(t, Tensor) else 1
    denoiser(torch.ones(count, 1, 2, 3), t, denoiser.condition(None, count))
    return spy.given[-1]


def test_every_process_gives_its_network_the_published_time() -> None:
    assert TIME_INPUTS.keys() == CLEANEST.keys() == set(PROCESSES)
    for name in PROCESSES:
        process = PROCESSES.create(name)
        _, label, _ = given_to_network(process, PARAMETERIZATIONS.create("v"), 0.25)
        assert float(label) == pytest.approx(TIME_INPUTS[name], rel=1e-6), name
        assert process.t_min == CLEANEST[name], name
        assert process.num_steps == 1000, name
    _, shifted, _ = given_to_network(LinearFlow(3.0), PARAMETERIZATIONS.create("v"), 0.25)
    assert float(shifted) == pytest.approx(500.0), "1000 sigma, not 1000 t"


def test_sit_gets_one_minus_t() -> None:
    for name in PARAMETERIZATIONS:
        _, label, _ = given_to_network(VP(), PARAMETERIZATIONS.create(name), 0.25)
        assert float(label) == pytest.approx(0.75 if name.startswith("reversed-") else 249.75), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_time_stays_float32_whatever_the_networks_dtype(dtype: torch.dtype) -> None:
    """bfloat16 has 8 bits: 998 and 999 would both be 1000."""
    process, v = VPDiscrete(), PARAMETERIZATIONS.create("v")
    for t in (0.999, 1.0):
        x, label, cond = given_to_network(process, v, t, dtype)
        assert label.dtype == torch.float32
        assert label.tolist() == pytest.approx([1000 * t - 1], rel=1e-7)
        assert x.dtype == cond.dtype == dtype
    _, label, _ = given_to_network(process, v, tensor(0.999, 1.0), dtype)
    assert label.tolist() == pytest.approx([998.0, 999.0], rel=1e-7)
    _, label, _ = given_to_network(LinearFlow(), PARAMETERIZATIONS.create("reversed-velocity"), 1 - 0.1234, dtype)
    assert label.tolist() == pytest.approx([0.1234], rel=1e-6)


def test_default_betas() -> None:
    ends = {
        ("linear", 1000): (1e-4, 0.02),
        ("linear", 100): (1e-3, 0.2),
        ("scaled-linear", 1000): (0.00085, 0.012),
        ("scaled-linear", 50): (0.00085, 0.012),
        ("cosine", 1000): (4.1284e-5, 0.999),
        ("squared-cosine", 1000): (4.1284e-5, 0.999),
    }
    for (schedule, steps), (first, last) in ends.items():
        betas = beta_schedule(schedule, steps)  # type: ignore[arg-type]
        assert betas[[0, -1]].tolist() == pytest.approx([first, last], rel=1e-4), schedule
    assert float(beta_schedule("scaled-linear", 3)[1]) == pytest.approx(
        ((math.sqrt(0.00085) + math.sqrt(0.012)) / 2) ** 2
    )


def test_a_chains_slope_at_both_ends_is_that_of_its_levels() -> None:
    """d log alpha / dt where a one-sided difference of third order is exact to 1e-5 of it."""
    chain = VPDiscrete()
    logs = torch.cat([tensor(0.0), chain.alphas.log()])
    for t, four, sign in ((0.0, logs[:4], 1), (1.0, logs[-4:].flip(0), -1)):
        k = chain.scales(t)
        slope = sign * float((-11 * four[0] + 18 * four[1] - 9 * four[2] + 2 * four[3]) / 6) * 1000
        assert float(k.d_alpha / k.alpha) == pytest.approx(slope, rel=1e-5), t


# --- a run -------------------------------------------------------------------------------------------------------


def test_a_pipeline_never_evaluates_beyond_its_t_max() -> None:
    backbone = BACKBONES["dit"].preset("tiny")
    given: list[float] = []
    backbone.register_forward_pre_hook(lambda module, args: given.extend(args[1].tolist()))
    for t_max in (0.9, 1.0):
        pipe = Pipeline(backbone, {"name": "flow"}, {"name": "x0"}, t_max=t_max)
        for sampler in ("ddim", "heun", "edm-heun:s_churn=9", "dpmpp-sde", "rk4"):
            given.clear()
            pipe(1, sampler=sampler, steps=4, output_type="latent", guidance=None)
            assert max(given) == pytest.approx(1000 * t_max), sampler


def test_every_evaluation_has_the_number_of_its_step() -> None:
    says = Says(LinearFlow())
    says.process = VP()
    for sampler, expected in ((DDIM(), [0, 1, 2, 3]), (SAMPLERS.create("heun"), [0, 0, 1, 1, 2, 2, 3])):
        says.calls.clear()
        sampler.sample(says, torch.ones(1, 1, 1, 1, dtype=F64), 4)
        assert [cond.run.step for *_, cond in says.calls] == expected
        assert {cond.run.steps for *_, cond in says.calls} == {4}
    says.calls.clear()
    invert("ddim", says, torch.ones(1, 1, 1, 1, dtype=F64), 4)
    assert [cond.run.step for *_, cond in says.calls] == [2, 2, 1], "the last step down is the first up"


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp-2m", "ddpm"])
def test_every_evaluation_has_the_number_of_steps_of_its_run(sampler: str) -> None:
    """Five times are five steps with the posterior mean at the end, four without, and four upwards."""
    grid, x = torch.linspace(0.9, 0.1, 5, dtype=F64), torch.ones(1, 1, 1, 1, dtype=F64)
    for end, total in (("posterior-mean", 5), ("state", 4)):
        says = Says(VP())
        steps = list(SAMPLERS.create(sampler).iterate(says, x, grid=grid, initial_state=x, end=end))
        assert {cond.run.steps for *_, cond in says.calls} == {total}
        assert [step.total for step in steps] == [total] * total
    says = Says(VP())
    invert("ddim", says, x, grid=grid)
    assert {cond.run.steps for *_, cond in says.calls} == {4}


def test_second_models_and_the_bound_have_the_number_of_the_step_too() -> None:
    x = torch.ones(1, 1, 1, 1, dtype=F64)
    says = Says(VP())
    variational_bound(says, x, 4)
    assert [cond.run.step for *_, cond in says.calls] == [0, 1, 2, 3]
    for guidance in (Autoguidance(2.0, weak=(weak := Says(VP()))), NoiseDamped(2.0, base=(base := Says(VP())))):
        denoiser = guidance.wrap(Says(VP()))
        denoiser(x, 0.5, denoiser.condition([0], 1).in_run(RunContext(step=3, steps=5)))
    assert weak.calls[-1][2].run.step == base.calls[-1][2].run.step == 3


class Numbers:
    """A noise source that keeps the numbers of its draws."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, int]] = []

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        self.drawn.append((stream, number))
        return NoiseSource.from_seed(0, len(like)).normal(stream, number, like)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_no_draw_is_used_twice(name: str) -> None:
    """Noise that comes back is noise of another size, and of images that hang together."""
    exact = GaussianDenoiser(VP(), 0.3, 0.5, (1, 2, 3))
    options = {"predictor-corrector": [{"corrector_steps": 2}, {"predictor": "dpmpp-sde", "corrector": "langevin"}]}
    for given in options.get(name, [{}]):
        sampler, source = SAMPLERS.create(name, **given), Numbers()
        steps = 5 if name != "restart" else 10
        sampler.sample(exact, torch.ones(2, 1, 2, 3, dtype=F64), steps, noise_source=source)
        assert len(set(source.drawn)) == len(source.drawn)
        assert sampler.stochastic == bool(source.drawn)
        draws = sampler.claims().draws_per_step
        assert all(number < draws * (steps - 1) for _, number in source.drawn)


def test_keys_count_from_the_start() -> None:
    assert NoiseSource.from_seed(3, 2, start=5).keys == ((3, 5), (3, 6))
    assert NoiseSource.from_seed([3, 9], 2).keys == ((3, 0), (9, 0))


def test_a_run_starts_at_the_noise_of_its_first_time() -> None:
    z = torch.full((1, 1, 1, 1), 2.0, dtype=F64)
    says = Says(VE())
    DDIM().sample(says, z, grid=tensor(0.9, 0.5))
    assert says.calls[0][0] == pytest.approx(2.0 * 0.01 * 5000**0.9)


@pytest.mark.parametrize(("level", "refused"), [(0.9, True), (1.1, False)])
def test_pure_noise_stands_where_there_is_as_much_of_it_as_signal(level: float, refused: bool) -> None:
    process = EDM(sigma_max=10.0)
    run = lambda: DDIM().sample(Says(process), torch.ones(1, 1, 1, 1), grid=tensor(level / 10, 0.01))  # noqa: E731
    if not refused:
        run()
        return
    with pytest.raises(ValueError, match="cannot start"):
        run()


@pytest.mark.parametrize(("level", "warned"), [(0.9, False), (1.1, True)])
def test_a_noisy_end_warns_at_as_much_noise_as_signal(level: float, warned: bool, recwarn) -> None:
    grid = tensor(1.0, 0.8, 0.7, 0.6, level / 10)
    DDIM().sample(Says(EDM(sigma_max=10.0)), torch.ones(1, 1, 1, 1), grid=grid)
    assert bool([w for w in recwarn if "images will be flat" in str(w.message)]) == warned


# --- samplers ----------------------------------------------------------------------------------------------------


def test_pndms_pseudo_runge_kutta_by_hand() -> None:
    """Liu et al. 2022 (PNDM), Eq. 13 with the transfer of Eq. 11: (e1 + 2 e2 + 2 e3 + e4) / 6."""
    process, grid = VP(), tensor(0.95, 0.75, 0.5)
    says = Says(process, (0.5, -0.3, 0.2, 0.7, 0.1, 0.9, -0.6, 0.4))
    (first, *_), x = PNDM("prk").iterate(says, torch.ones(1, 1, 1, 1, dtype=F64), grid=grid), 1.0
    inner = [ddim(process, x, eps, 0.95, s) for eps, s in ((0.5, 0.85), (-0.3, 0.85), (0.2, 0.75))]
    assert [call[0] for call in says.calls[:4]] == pytest.approx([x, *inner], rel=1e-12)
    assert [call[1] for call in says.calls[:4]] == pytest.approx([0.95, 0.85, 0.85, 0.75])
    mean = (0.5 + 2 * -0.3 + 2 * 0.2 + 0.7) / 6
    assert first.x_s.item() == pytest.approx(ddim(process, x, mean, 0.95, 0.75), rel=1e-12)


@pytest.mark.parametrize("made", [DEIS(lower_order_final=True), DPMpp3M(lower_order_final=True)], ids=repr)
def test_lower_orders_end_runs_of_fewer_than_15_steps(made: Any) -> None:
    """Sampling steps, of which the posterior mean is one; the published code has the same limit."""
    for moves, tail, lowered in ((13, True, True), (14, True, False), (14, False, True), (15, False, False)):
        orders = [rule.order for rule in made.schedule_for(moves, tail).rules]
        last = [2 if tail else 1] if lowered else [3]
        assert orders[-1:] == last, (moves, tail)
        assert orders[:-2] == [3] * (moves - 2)


def test_a_sampler_knows_whether_a_posterior_mean_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    schedule = DEIS.schedule_for

    def spied(self: DEIS, steps: int, tail: bool) -> Any:
        asked.append((steps, tail))
        return schedule(self, steps, tail)

    monkeypatch.setattr(DEIS, "schedule_for", spied)
    for end in ("posterior-mean", "state"):
        DEIS().sample(Says(VP()), torch.ones(1, 1, 1, 1, dtype=F64), grid=tensor(1.0, 0.6, 0.3), end=end)  # type: ignore[arg-type]
    assert asked == [(2, True), (2, False)]


def test_unpublished_defaults_of_multistep_solvers() -> None:
    rules = lower_at_the_end([LMS().rule] * 5, tail=False, to=2)
    assert [getattr(rule, "order", None) for rule in rules] == [4, 4, 4, 3, 2]
    assert LMS().order == 4, "k-diffusion's"


def test_churn_by_its_formula() -> None:
    """Karras et al. 2022, Algorithm 2: gamma = min(s_churn / N, sqrt(2) - 1) where s_tmin <= sigma <= s_tmax."""
    process, grid = EDM(sigma_max=64.0), tensor(0.5, 0.25, 0.125, 1 / 64)
    for churn, gamma in ((1.2, 0.3), (40.0, math.sqrt(2) - 1)):
        says = Says(process, (0.0,))
        sampler = EDMEuler(s_churn=churn, s_tmin=10.0, s_tmax=20.0, s_noise=1.5)
        source = RecordedNoise(step=torch.ones(9, 1, 1, 1, 1))
        x = torch.zeros(1, 1, 1, 1, dtype=F64)
        steps = list(sampler.iterate(says, x, grid=grid, noise_source=source))
        raised = 16 * (1 + gamma)
        added = 1.5 * math.sqrt(raised**2 - 16**2)
        assert [call[1] * 64 for call in says.calls] == pytest.approx([32.0, raised, 8.0, 1.0])
        assert [step.x_s.item() for step in steps] == pytest.approx([0.0, added, added, added])


@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_restart_goes_down_by_its_rho(rho: float) -> None:
    """The times of the way back are Karras's between both ends, Eq. 5, with the sampler's own rho."""
    process = EDM(sigma_max=64.0)
    says = Says(process, (0.0,))
    sampler = Restart((Interval(0.25, 4.0, steps=4, repeats=1),), rho=rho)
    x = torch.zeros(1, 1, 1, 1, dtype=F64)
    steps = list(sampler.iterate(says, x, grid=tensor(1.0, 0.25 / 64, 0.01 / 64), seed=0))
    ends = 4.0 ** (1 / rho), 0.25 ** (1 / rho)
    down = [(ends[0] + i / 3 * (ends[1] - ends[0])) ** rho for i in range(4)]
    heun = [level for pair in pairwise(down) for level in pair]
    assert [call[1] * 64 for call in says.calls] == pytest.approx([64.0, 0.25, *heun, 0.25, 0.01, 0.01])
    assert [step.nfe for step in steps] == [8, 10, 11], "a step that ends on the lower end restarts"


def test_adaptive_controller_by_its_formula() -> None:
    """k-diffusion's PIDStepSizeController: the last three inverse errors with (P + I + D), -(P + 2 D) and D."""
    for solver, order in ((12, 2), (23, 3)):
        sampler = DPMAdaptive(solver, proportional=0.3, integral=0.6, derivative=0.2, accept=0.81)  # type: ignore[arg-type]
        before = Controller(tensor(0.4), (tensor(1.3), tensor(0.8)), torch.zeros(1))
        after, accepted = sampler._controlled(before, tensor(0.4), tensor(1.1), torch.tensor([True]))
        raw = 1.1 ** (1.1 / order) * 1.3 ** (-0.7 / order) * 0.8 ** (0.2 / order)
        assert accepted.tolist() == [True]
        assert float(after.size) == pytest.approx(0.4 * (1 + math.atan(raw - 1)), rel=1e-12)
        assert [float(v) for v in after.inverse] == [1.1, 1.3]
        low, high, previous = tensor(0.5, -2.0), tensor(0.7, -1.0), tensor(-3.0, 0.1)
        sampler = DPMAdaptive(solver, rtol=0.1, atol=0.01)  # type: ignore[arg-type]
        error = math.sqrt(((0.2 / 0.3) ** 2 + (1.0 / 0.2) ** 2) / 2)
        found = sampler._inverse_error(high[None], low[None], previous[None])
        assert float(found) == pytest.approx(1 / (error + 1e-8), rel=1e-12)


def test_the_size_that_rk45_tries_next() -> None:
    """Gustafsson's PI controller: 0.9 E^(-0.7/5) E_before^(0.4/5), within 0.2 and 5; after a refusal at most 1."""
    before = rk45.Controller(tensor(0.1, 0.1, 0.1, 0.1, 0.1), tensor(0.5, 0.5, 0.5, 0.5, 0.5))
    size, error = tensor(0.1, 0.1, 0.1, 0.1, 0.05), tensor(0.3, 1e-9, 0.3, 4.0, 0.3)
    accepted, rejected = (
        torch.tensor([True, True, True, False, True]),
        torch.tensor([False, False, True, False, False]),
    )
    after = rk45._next(before, size, error, accepted, rejected)
    factor = 0.9 * 0.3**-0.14 * 0.5**0.08
    assert after.size.tolist() == pytest.approx([0.1 * factor, 0.5, 0.1, 0.1 * 0.9 * 4**-0.2, 0.1], rel=1e-12)
    assert after.error.tolist() == pytest.approx([0.3, 1e-4, 0.3, 0.5, 0.3])


def test_diffusion_coefficients_of_sit() -> None:
    """w(t) of Ma et al. 2024's code, whose time is 1 - t, at norm 1 and at norm 0.5."""
    times = tensor(0.1, 0.5, 0.9)
    k, shifted = LinearFlow().scales(times), LinearFlow(3.0).scales(times)
    cos = math.cos(0.1 * math.pi)
    expected = {
        "constant": (0.5, 0.5, 0.5),
        "sigma": (0.05, 0.25, 0.45),
        "linear": (0.05, 0.25, 0.45),
        "decreasing": ((1 - 0.5 * cos) ** 2 / 4, 0.25, (1 + 0.5 * cos) ** 2 / 4),
        "increasing-decreasing": (0.5 * math.sin(0.1 * math.pi) ** 2, 0.5, 0.5 * math.sin(0.1 * math.pi) ** 2),
        "sbdm": (0.5 * 0.1 / 0.9, 0.5, 0.5 * 0.9 / 0.1),
    }
    for name, values in expected.items():
        assert FlowSDE(name, norm=0.5).coefficient(k).tolist() == pytest.approx(list(values), rel=1e-12), name
    assert FlowSDE("decreasing").coefficient(k).tolist() == pytest.approx(
        [(1 - cos) ** 2 / 4, 0.25, (1 + cos) ** 2 / 4], rel=1e-12
    )
    assert FlowSDE("linear").coefficient(shifted).tolist() == pytest.approx([0.1, 0.5, 0.9]), "t, not sigma"
    assert FlowSDE("sigma").coefficient(shifted).tolist() == pytest.approx([0.25, 0.75, 2.7 / 2.8])


# --- grids and guidance -----------------------------------------------------------------------------------------


def test_rounded_time_steps() -> None:
    """linspace of 1000 steps to 4: 999, 666, 333, 0; of 5 the odd quarters are rounded to even, as numpy does."""
    taken = lambda spec, steps: (GRIDS.create(spec).times(VPDiscrete(), steps, 1e-3, 1.0) * 1000 - 1).tolist()  # noqa: E731
    assert taken("linspace", 7) == pytest.approx([999, 832, 666, 500, 333, 166, 0], abs=1e-9)
    assert taken("leading", 4) == pytest.approx([750, 500, 250, 0], abs=1e-9)
    assert taken("timesteps:spacing=leading,offset=1", 4) == pytest.approx([751, 501, 251, 1], abs=1e-9)
    assert taken("trailing", 7) == pytest.approx([999, 856, 713, 570, 428, 285, 142], abs=1e-9)


def test_apg_shortens_first_and_projects_then() -> None:
    """Sadat et al. 2024, Algorithm 1: the difference (3, 4) cut to length 2.5 is (1.5, 2), of which x is halved."""
    difference, given = tensor(3.0, 4.0).reshape(1, 1, 1, 2), tensor(2.0, 0.0).reshape(1, 1, 1, 2)
    assert projected(difference, given, 0.5, 2.5).flatten().tolist() == pytest.approx([0.75, 2.0])
    assert projected(difference, given, 0.0, 2.5).flatten().tolist() == pytest.approx([0.0, 2.0])
    assert projected(difference, given, 0.5, 9.0).flatten().tolist() == pytest.approx([1.5, 4.0])


def test_apg_momentum_runs_on() -> None:
    """Three evaluations: d3 + m (d2 + m d1)."""

    class Two(Says):
        def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
            d = super().__call__(x_t, t, cond)
            said = torch.where(cond.is_null, 0.0, 1.0 + len(self.calls)).double().reshape(-1, 1, 1, 1)
            return Denoised(d.x_t, said, d.scales)

    model = Two(VP())
    guided = APG(2.0, eta=1.0, momentum=-0.5).wrap(model)
    cond = guided.condition([0], 1)
    found = [float(guided(torch.ones(1, 1, 1, 1, dtype=F64), 0.5, cond).x0) for _ in range(3)]
    assert found == pytest.approx([2 + 2, 3 + (3 - 1), 4 + (4 - 0.5 * (3 - 1))])


def test_cads_restores_mean_and_deviation() -> None:
    y, z = tensor(1.0, 3.0)[None], tensor(2.0, -1.0)[None]
    blurred = tensor(0.5 * 1 + 0.4 * math.sqrt(0.75) * 2, 0.5 * 3 - 0.4 * math.sqrt(0.75))
    assert noised(y, z, tensor(0.25), 0.4, 0.0)[0].tolist() == pytest.approx(blurred.tolist())
    sign = 1 if blurred[1] > blurred[0] else -1
    restored = tensor(2.0 - sign, 2.0 + sign)
    assert noised(y, z, tensor(0.25), 0.4, 1.0)[0].tolist() == pytest.approx(restored.tolist())
    mixed = 0.3 * restored + 0.7 * blurred
    assert noised(y, z, tensor(0.25), 0.4, 0.3)[0].tolist() == pytest.approx(mixed.tolist())
