"""The shifted grid: diffusers' shift on the flow process, its own definition and exact ends on all others."""

from __future__ import annotations

import math

import pytest
import torch

from dinit.diffusion import PROCESSES
from dinit.diffusion.continuous import LinearFlow
from dinit.samplers import GRIDS
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.grids.uniform import Uniform

F64 = torch.float64


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
def test_equals_the_flow_match_schedule_of_diffusers(shift: float, steps: int) -> None:
    import dinit.models  # noqa: F401  (makes diffusers importable beside a torchvision whose operators do not load)

    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    # As pipelines of flow models ask for it: sigmas before the shift.
    scheduler.set_timesteps(sigmas=(1 - torch.arange(steps, dtype=F64) / steps).tolist())
    flow = LinearFlow()
    times = Shifted(shift).times(flow, steps, flow.t_min, 1.0)
    assert torch.allclose(times, scheduler.sigmas[:-1].double(), atol=3e-7)


@pytest.mark.parametrize("end", ["open", "t_min"])
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("process", PROCESSES.names())
def test_decreases_within_its_exact_ends(process: str, shift: float, end: str) -> None:
    made = PROCESSES.create(process)
    for t_max in (1.0, 0.97):
        for steps in (1, 2, 3, 5, 37, 250, 4000):
            times = Shifted(shift, end).times(made, steps, made.t_min, t_max)  # type: ignore[arg-type]
            assert times.shape == (steps,)
            assert times.dtype == F64
            assert float(times[0]) == t_max
            assert bool((times.diff() < 0).all())
            assert bool((times >= made.t_min).all())
            assert steps < 2 or end == "open" or float(times[-1]) == made.t_min


@pytest.mark.parametrize("process", PROCESSES.names())
def test_is_the_shift_of_an_even_spacing(process: str) -> None:
    made, shift = PROCESSES.create(process), 3.0
    k = made.scales(Shifted(shift, "t_min").times(made, 12, made.t_min, 0.98))
    u = k.sigma / (k.alpha + k.sigma)
    v = u / (shift - (shift - 1) * u)
    even = torch.linspace(float(v[0]), float(v[-1]), 12, dtype=F64)
    assert torch.allclose(v, even, atol=1e-8)
    assert torch.allclose(u, shift * even / (1 + (shift - 1) * even), atol=1e-8)


def test_without_shift_it_is_the_uniform_grid_of_the_flow() -> None:
    flow = LinearFlow()
    for steps in (1, 4, 30):
        times = Shifted(1.0).times(flow, steps, flow.t_min, 1.0)
        assert torch.allclose(times, Uniform().times(flow, steps, flow.t_min, 1.0))


def test_first_is_where_the_run_starts() -> None:
    flow = LinearFlow()
    times = Shifted(3.0, first=0.999).times(flow, 8, flow.t_min, 1.0)
    assert torch.equal(times, Shifted(3.0).times(flow, 8, flow.t_min, 0.999))
    assert float(times[0]) == 0.999


def test_options_are_checked() -> None:
    assert GRIDS.create("shifted") == Shifted(3.0, "open")
    for shift, wanted in ((0.0, "positive"), (-1.0, "positive"), (math.nan, "a number")):
        with pytest.raises(ValueError, match=f"shift must be {wanted}, got {shift}"):
            Shifted(shift)
    for first in (0.0, 1.1):
        with pytest.raises(ValueError, match="first must be"):
            Shifted(first=first)
    with pytest.raises(ValueError, match="'open' or 't_min'"):
        Shifted(3.0, "closed")  # type: ignore[arg-type]
