"""Edges of options: ends of intervals, checks that a subclass takes over, sections of unequal size, one time."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Denoised, Process
from dinit.diffusion.continuous import EDM, VE, VP, _LinearBeta
from dinit.diffusion.discrete import VPDiscrete
from dinit.likelihood.ode import gaussian_log_prob
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import GRIDS, SAMPLERS, NoiseSource
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.respacing import Respaced
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.guidance import GUIDANCES
from dinit.samplers.guidance.schedule import Ramp
from dinit.samplers.inversion.bdia import _BDIA
from dinit.samplers.multistep.rules import HistoryRule
from dinit.samplers.multistep.unified import MultistepState
from dinit.samplers.ode.edm import Churned, EDMEuler
from dinit.samplers.ode.restart import Interval, Restart
from dinit.samplers.ode.rk45 import RK45

F64 = torch.float64


def mixture(process: Process, shift: float = 0.0) -> MixtureDenoiser:
    means = torch.linspace(-1, 1, 16, dtype=F64).reshape(4, 1, 2, 2) + shift
    return MixtureDenoiser(process, means, torch.full_like(means, 0.05), None, torch.tensor([0, 0, 1, 1]))


# --- ends of intervals -------------------------------------------------------------------------------------------

LEVELS = torch.tensor([40.0, 20.0, 10.0, 5.0], dtype=F64)  # exact, as are their times 1/2, 1/4, ...


@pytest.mark.parametrize(
    ("s_tmin", "s_tmax", "churned"),
    [
        (20.0, 20.0, [False, True, False, False]),
        (10.0, 20.0, [False, True, True, False]),
        (10.1, 20.0, [False, True, False, False]),
        (10.0, 19.9, [False, False, True, False]),
        (0.0, 40.0, [True, True, True, True]),
        (5.0, math.inf, [True, True, True, True]),
        (41.0, 50.0, [False, False, False, False]),
    ],
)
@pytest.mark.parametrize(
    "kind", [kind for kind in Churned.__subclasses__() if kind.__module__.startswith("dinit.")]
)
def test_churn_has_both_ends_of_its_interval(kind: Any, s_tmin: float, s_tmax: float, churned: list[bool]) -> None:
    model = mixture(EDM(0.01, 80.0))
    t, s = (model.process.scales(LEVELS / 80 / part) for part in (1, 2))
    raised = kind(s_churn=1.0, s_tmin=s_tmin, s_tmax=s_tmax).inner_times(model, t, s, 4)[:, 0]
    assert (raised > t.time).tolist() == churned


def test_a_restart_is_where_its_low_end_is_reached() -> None:
    points = mixture(EDM(0.01, 80.0)).process.scales(LEVELS / 80).unbind()
    for low, expected in ((20.0, [True, False, False]), (19.9, [False, True, False]), (4.9, [False] * 3)):
        interval = Interval(low, 30.0)
        assert [interval.reached(t, s) for t, s in pairwise(points)] == expected
    assert Restart((Interval(0.1, 40.0),)).check(mixture(EDM()), points) is None  # its high end is the first level


def other_images(x: Tensor, t: Tensor) -> Tensor:
    """Logits of two classes."""
    return torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], dim=1)


class LogRatio(torch.nn.Module):
    def forward(self, x_t: Tensor, k: Any, labels: Tensor) -> Tensor:
        return 3 * x_t.flatten(1).sum(1)


WITH = {
    "autoguidance": {"weak": mixture(VP(), 0.7)},
    "classifier": {"classifier": other_images},
    "clip-x0": {"limit": 0.01, "low": None, "high": None},
    "discriminator": {"discriminator": LogRatio()},
    "negative": {"label": 1},
}
BOUNDED = [
    name for name in GUIDANCES if {"scale", "low", "high"} <= set(inspect.signature(GUIDANCES[name]).parameters)
]


@pytest.mark.parametrize("a_time_each", [False, True])
@pytest.mark.parametrize("name", BOUNDED)
def test_a_guidance_acts_up_to_both_ends_of_its_interval(name: str, a_time_each: bool) -> None:
    model = mixture(VP())
    times = torch.tensor([0.6, 0.5, 0.4], dtype=F64)
    at = [float(k.log_snr) if a_time_each else k.floats.log_snr for k in model.process.scales(times).unbind()]
    x = torch.linspace(-2, 2, 12, dtype=F64).reshape(3, 1, 2, 2)

    def images(denoiser: Any) -> list[Tensor]:
        cond = denoiser.condition([0, 0, 0], 3)
        if a_time_each:
            return list(denoiser(x, model.process.scales(times), cond).x0)
        made: list[Denoised] = [denoiser(x, k, cond) for k in model.process.scales(times).unbind()]
        return [one.x0[i] for i, one in enumerate(made)]

    plain = images(model)
    up, down = (lambda v: math.nextafter(v, math.inf)), (lambda v: math.nextafter(v, -math.inf))
    for low, high, acts in (
        (at[0], at[2], [True, True, True]),
        (up(at[0]), at[2], [False, True, True]),
        (at[0], down(at[2]), [True, True, False]),
        (at[1], math.inf, [False, True, True]),
        (-math.inf, at[1], [True, True, False]),
        (up(at[2]), math.inf, [False, False, False]),
    ):
        options = {"scale": 3.0, **WITH.get(name, {}), "low": low, "high": high}
        found = images(GUIDANCES.create(name, **options).wrap(model))
        assert [not torch.equal(a, b) for a, b in zip(found, plain, strict=True)] == acts, (low, high)


# --- checks that a subclass takes over ---------------------------------------------------------------------------

WRONG: dict[type, list[dict[str, Any]]] = {
    Churned: [{"s_churn": -1.0}, {"s_noise": -0.1}, {"s_tmin": 2.0, "s_tmax": 1.0}, {"s_churn": math.inf}],
    _BDIA: [{"gamma": 0.0}, {"gamma": 1.01}],
    Ramp: [{"first": -0.1}, {"first": 1.1}, {"last": -0.1}, {"last": 1.1}],
    _LinearBeta: [{"beta_min": 0.0}, {"beta_min": 2.0, "beta_max": 1.0}],
    VE: [{"sigma_min": 0.0}, {"sigma_min": 2.0, "sigma_max": 1.0}, {"sigma_min": 1.0, "sigma_max": 1.0}],
    HistoryRule: [{"order": 0}, {"start_steps_back": 3}, {"max_step_ratio": 0.0}, {"prediction": "z"}],
}


def kinds(base: type) -> Iterator[type]:
    """The class and all below it of which objects can be made."""
    for one in (base, *base.__subclasses__()):
        if one is not base:
            yield from kinds(one)
        elif not inspect.isabstract(one) and one is not Churned and not one.__name__.startswith("_"):
            yield one


CASES = [(kind, options) for base, wrong in WRONG.items() for kind in kinds(base) for options in wrong]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_subclass_refuses_what_its_base_refuses(kind: type, options: dict[str, Any]) -> None:
    kind()
    with pytest.raises(ValueError, match=rf"{next(iter(options))}|lie in \[0, 1\]|order|sigma|beta"):
        kind(**options)


# --- sections and single times -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "sizes"),
    [(10, (4, 3, 3)), (11, (4, 4, 3)), (12, (4, 4, 4)), (7, (2, 2, 1, 1, 1)), (1000, (334, 333, 333))],
)
def test_the_first_sections_take_what_does_not_divide(total: int, sizes: tuple[int, ...]) -> None:
    every = Respaced(",".join(map(str, sizes))).timesteps(total, total)
    assert every == list(range(total))
    for i in range(len(sizes)):
        more = [size + (k == i) for k, size in enumerate(sizes)]
        with pytest.raises(ValueError, match=f"do not fit in a section of {sizes[i]}"):
            Respaced(",".join(map(str, more))).timesteps(total, total + 1)
    firsts = Respaced(",".join("1" for _ in sizes)).timesteps(total, len(sizes))
    assert firsts == [sum(sizes[:i]) for i in range(len(sizes))]


ONE: list[TimeGrid] = [GRIDS.create(name) for name in GRIDS if name not in ("times", "searched", "respaced")]
ONE += [
    Shifted(first=1e-5),
    Shifted(first=0.3),
    GRIDS.create("karras", first=0.5),
    GRIDS.create("log-snr", first=0.5),
]


@pytest.mark.parametrize("process", PROCESSES.names())
@pytest.mark.parametrize("grid", ONE, ids=repr)
def test_one_time_alone_lies_between_the_ends(grid: TimeGrid, process: str) -> None:
    made = PROCESSES.create(process)
    for t_max in (1.0, 0.5):
        (time,) = grid.times(made, 1, made.t_min, t_max).tolist()
        assert made.t_min <= time <= t_max


def test_a_density_is_summed_in_float64_whatever_the_image_is() -> None:
    x = 3 * NoiseSource.from_seed(0, 2).normal("x", 0, torch.empty(2, 3, 32, 32))
    std = torch.tensor(1.7, dtype=F64)
    exact = -((x.double() / 1.7).square() / 2 + math.log(1.7 * math.sqrt(2 * math.pi))).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_log_prob(x, std), exact, rtol=1e-12, atol=0)


def test_a_chain_of_any_length_has_as_many_timesteps() -> None:
    for steps in (2, 3, 10, 1000):
        chain = VPDiscrete("squared-cosine", num_steps=steps)
        assert len(chain.alphas) == steps
        assert float(chain.scales(chain.t_min).time) * steps == pytest.approx(1)


def test_churn_of_nothing_is_warned_of_and_is_the_plain_solver() -> None:
    model = mixture(EDM(0.01, 80.0))
    x = torch.linspace(-1, 1, 4, dtype=F64).reshape(1, 1, 2, 2)
    with pytest.warns(UserWarning, match="churn"):
        outside = EDMEuler(s_churn=5.0, s_tmin=90.0).sample(model, x, 4)
    assert torch.equal(EDMEuler().sample(model, x, 4), outside)


# --- what every sampler counts and keeps -------------------------------------------------------------------------


def tensors(state: Any) -> int:
    """Tensors in the state of a sampler."""
    if isinstance(state, Tensor):
        return 1
    if isinstance(state, (tuple, list)):
        return sum(map(tensors, state))
    fields = getattr(state, "__dataclass_fields__", ())
    return sum(tensors(getattr(state, name)) for name in fields)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_evaluations_are_counted_from_the_first_step_on(name: str) -> None:
    sampler, model = SAMPLERS.create(name), mixture(VP())
    x = torch.linspace(-1, 1, 4, dtype=F64).reshape(1, 1, 2, 2)
    for steps in (1, 2, 3, 4, 6):
        *_, last = sampler.iterate(model, x, steps)
        if sampler.claims().cost_depends_on == "steps":
            assert sampler.nfe(steps) == last.nfe
        assert steps > 1 or sampler.nfe(1) == last.nfe == 1


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_state_does_not_grow_with_the_run(name: str) -> None:
    x = torch.linspace(-1, 1, 4, dtype=F64).reshape(1, 1, 2, 2)
    if isinstance(sampler := SAMPLERS.create(name), RK45):
        pytest.skip("a step size and an error, whatever the run; slow")
    sizes = [tensors(_past(step.state)) for step in sampler.iterate(mixture(VP()), x, 14)]
    assert len(set(sizes[6:13])) == 1


def _past(state: Any) -> Any:
    """Without the coefficients of steps to come, of which there are fewer each time."""
    return state.past if isinstance(state, MultistepState) else state
