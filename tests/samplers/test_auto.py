"""The solver to begin with, default grids and ends of multistep solvers, and what a call records of them."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit import Pipeline
from dinit.diffusion import PROCESSES, Process
from dinit.models.analytic import MixtureDenoiser
from dinit.pipelines.call import Call
from dinit.samplers import SAMPLERS
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.grids.uniform import Uniform
from dinit.samplers.multistep.adams import AdamsBashforth
from dinit.samplers.multistep.auto import FEW, MANY, MANY_FROM, SHIFTS, SOME, SOME_FROM

F64 = torch.float64
PATHS = ("flow", "vp-discrete", "edm")
LABELS = [3, 7]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("digits-dit")


def mixture(process: Process) -> MixtureDenoiser:
    generator = torch.Generator().manual_seed(21)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
    means, variances = 0.4 * draw(5, 2, 4, 4), 0.04 + 0.08 * draw(5, 2, 4, 4).square()
    return MixtureDenoiser(process, means, variances, torch.full((5,), 0.2, dtype=F64))


@functools.cache
def problem(path: str) -> tuple[MixtureDenoiser, Tensor, Tensor]:
    """The denoiser, noises, and their ends by 200 steps of Adams-Bashforth."""
    model = mixture(PROCESSES.create(path))
    noise = torch.randn(24, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=F64)
    exact = AdamsBashforth(4, "v", "corrected").sample(model, noise, 200, grid=Shifted(0.7), end="clean")
    return model, noise, exact


def error(path: str, sampler: str, steps: int, **options: Any) -> float:
    """RMS distance to the end."""
    model, noise, exact = problem(path)
    found: Tensor = SAMPLERS.create(sampler).sample(model, noise, steps, **options)
    return float((found - exact).square().mean().sqrt())


@pytest.mark.parametrize("path", PATHS)
def test_few_steps_are_accurate_on_every_process(path: str) -> None:
    """Measured: 0.0119 .. 0.0122, 0.0028, 0.00081 .. 0.00084, 0.00030 .. 0.00032."""
    at_5, at_10, at_15, at_20 = (error(path, "auto", n) for n in (5, 10, 15, 20))
    assert at_5 < 0.014
    assert at_10 < 0.0032
    assert at_15 < 0.001
    assert at_20 < 0.0004
    usual = Karras() if path == "edm" else Uniform()
    assert at_20 < 0.25 * error(path, "dpmpp-2m", 20, grid=usual)


@pytest.mark.parametrize("name", ["dpmpp-2m", "dpmpp-3m", "unipc", "deis", "ipndm", "lms", "ab", "eab"])
def test_default_grids_and_ends_beat_those_of_karras_where_sigma_spans_decades(name: str) -> None:
    assert error("edm", name, 15) < 0.85 * error("edm", name, 15, grid=Karras(), end="posterior-mean")
    flow = PROCESSES.create("flow")  # shifted times raised the FID of shipped networks there
    assert SAMPLERS.create(name).grid_for(flow) == Uniform()
    assert SAMPLERS.create(name).end_for(flow) == "posterior-mean"


def test_the_number_of_evaluations_decides(pipe: Pipeline) -> None:
    auto = SAMPLERS.create("auto")
    edges = (SOME_FROM - 1, SOME_FROM, MANY_FROM - 1, MANY_FROM)
    assert [auto.chosen(n) for n in edges] == [FEW, SOME, SOME, MANY]
    assert FEW.chosen(50) is FEW
    at = lambda steps, **options: pipe.prepare(LABELS, sampler="auto", steps=steps, **options).sampler  # noqa: E731
    assert [at(n) for n in edges] == [FEW, SOME, SOME, MANY]
    assert at(MANY_FROM, end="state") == SOME  # the network is not evaluated at the last time
    assert at(None, grid=[1.0, 0.7, 0.3]) == FEW


@pytest.mark.parametrize("steps", [4, SOME_FROM])
def test_a_record_has_the_chosen_solver_and_replays(pipe: Pipeline, steps: int) -> None:
    made = pipe(LABELS, sampler="auto", steps=steps, guidance=None, output_type="latent")
    config = json.loads(json.dumps(made.call.to_config()))
    assert config["sampler"]["name"] != "auto"
    assert (config["grid"]["name"], config["end"]) == ("shifted", "clean")
    assert torch.equal(pipe.run(Call.from_config(config), "latent").images, made.images)
    spelled = pipe(LABELS, sampler=made.call.sampler, steps=steps, grid=made.call.grid, end="clean", guidance=None)
    assert spelled.call == made.call


@pytest.mark.parametrize("steps", [5, SOME_FROM, MANY_FROM])
def test_it_is_the_chosen_solver_outside_of_pipelines(steps: int) -> None:
    model = mixture(PROCESSES.create("flow"))
    noise = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=F64)
    chosen = {5: FEW, SOME_FROM: SOME, MANY_FROM: MANY}[steps]
    grid = Shifted(SHIFTS[chosen])
    for end in ("clean", "posterior-mean", "state"):
        if end == "state" and steps != 5:
            continue  # one evaluation fewer, which is another solver
        one = SAMPLERS.create("auto").sample(model, noise, steps, end=end)
        assert torch.equal(one, chosen.sample(model, noise, steps, grid=grid, end=end))
    assert torch.equal(
        SAMPLERS.create("auto").sample(model, noise, steps),
        chosen.sample(model, noise, steps, grid=grid, end="clean"),
    )


def test_no_step_to_zero_where_the_process_has_noise_there() -> None:
    ve = PROCESSES.create("ve")
    assert {SAMPLERS.create(name).end_for(ve) for name in ("auto", "ab", "deis", "ipndm", "lms")} == {
        "posterior-mean"
    }


def test_older_records_keep_their_grid_and_end(pipe: Pipeline) -> None:
    """Of a solver whose defaults have changed since."""
    old = {
        **pipe.prepare(LABELS, sampler="ddim", steps=4, guidance=None).to_config(),
        "sampler": {
            "name": "deis",
            "order": 3,
            "variable": "t",
            "warm_up": "corrected",
            "lower_order_final": False,
        },
        "grid": {"name": "uniform", "last": None},
    }
    call = Call.from_config(old)
    assert (call.grid, call.end) == (Uniform(), "posterior-mean")
    assert call.to_config() == old
