"""The end of a call's trajectory: posterior mean, the sampler's own step to t = 0, or the state. SiT's SDE."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit import Pipeline
from dinit.cli.options import CallFlags
from dinit.pipelines.call import Call
from dinit.samplers import NoiseSource
from dinit.samplers.grids.uniform import Uniform
from dinit.samplers.sde.flow_sde import FlowSDE

LABELS, STEPS = [3, 7], 6


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    """On linear flow, with a network that predicts dx/dt."""
    return Pipeline.from_pretrained("digits-dit")


def latents(pipe: Pipeline, **options: Any) -> Tensor:
    return pipe(LABELS, **{"steps": STEPS, "guidance": None, "output_type": "latent", **options}).images


@torch.no_grad()
def sit_program(
    pipe: Pipeline, form: str, norm: float, last_step: str | None, size: float, count: int = STEPS
) -> Tensor:
    """SiT's Euler-Maruyama loop in its own time, from noise at 0 to data at 1. Ma et al. 2024."""
    source = NoiseSource(((0, 0), (0, 1)))
    like = torch.empty(2, pipe.backbone.in_channels, pipe.backbone.image_size, pipe.backbone.image_size)
    x = source.normal("initial", 0, like)
    embedded = pipe.backbone.embed(torch.tensor(LABELS))

    def velocity(x: Tensor, t: float) -> Tensor:  # d x / dt of SiT's time, of x_t = t data + (1 - t) noise
        label = pipe.parameterization.noise_label(pipe.process, pipe.process.scales(1 - t)).float().reshape(1)
        return -pipe.backbone(x, label, embedded)

    def score(v: Tensor, x: Tensor, t: float) -> Tensor:  # r = alpha / alpha' = t, sigma' = -1
        sigma = 1 - t
        return (t * v - x) / (sigma**2 + t * sigma)

    def diffusion(t: float) -> float:
        forms = {
            "sigma": norm * (1 - t),
            "constant": norm,
            "linear": norm * (1 - t),
            "decreasing": 0.25 * (norm * math.cos(math.pi * t) + 1) ** 2,
            "increasing-decreasing": norm * math.sin(math.pi * t) ** 2,
        }
        return forms[form]

    end = 1.0 if last_step is None else 1 - size
    times = [end * i / (count - 1) for i in range(count)]
    for i, (t, s) in enumerate(pairwise(times)):
        v, w, dt = velocity(x, t), diffusion(t), s - t
        x = x + dt * (v + w * score(v, x, t)) + math.sqrt(2 * w * dt) * source.normal("step", i, x)
    if last_step is None:
        return x
    v = velocity(x, end)
    if last_step == "mean":
        return x + size * (v + diffusion(end) * score(v, x, end))
    if last_step == "euler":
        return x + size * v
    return x / end + (1 - end) ** 2 / end * score(v, x, end)


@pytest.mark.parametrize(
    ("spec", "grid", "theirs"),
    [
        ("sit-sde", None, ("sigma", 1.0, "mean", 0.04)),
        ("sit-sde:last_step=euler", None, ("sigma", 1.0, "euler", 0.04)),
        ("sit-sde:last_step=tweedie", None, ("sigma", 1.0, "tweedie", 0.04)),
        ("sit-sde:norm=0.5", "uniform:last=0.02", ("sigma", 0.5, "mean", 0.02)),
        ("flow-sde:method=euler-maruyama,last_step=mean,diffusion=constant", None, ("constant", 1.0, "mean", 0.04)),
        ("sit-sde:diffusion=linear", "uniform:last=0.1", ("linear", 1.0, "mean", 0.1)),
        ("sit-sde:diffusion=decreasing", None, ("decreasing", 1.0, "mean", 0.04)),
        ("sit-sde:diffusion=increasing-decreasing", None, ("increasing-decreasing", 1.0, "mean", 0.04)),
    ],
)
def test_sit_program_by_a_call(pipe: Pipeline, spec: str, grid: str | None, theirs: Any) -> None:
    found = latents(pipe, sampler=spec, grid=grid)
    torch.testing.assert_close(found, sit_program(pipe, *theirs), atol=2e-4, rtol=1e-4)


def test_sit_program_without_a_last_step(pipe: Pipeline) -> None:
    """num_steps points in [0, 1] are one step fewer."""
    found = latents(pipe, sampler="sit-sde:last_step=none", steps=STEPS - 1)
    torch.testing.assert_close(found, sit_program(pipe, "sigma", 1.0, None, 0.0), atol=2e-4, rtol=1e-4)


def test_its_defaults_are_the_published_ones(pipe: Pipeline) -> None:
    call = pipe.prepare(LABELS, sampler="sit-sde", steps=250)
    assert call.sampler == FlowSDE("sigma", 1.0, "euler-maruyama", "mean")
    assert (call.grid, call.end) == (Uniform(last=0.04), "clean")
    assert pipe.prepare(LABELS, sampler="flow-sde", steps=250).end == "posterior-mean"


@pytest.mark.parametrize("sampler", ["euler", "heun", "midpoint", "rk4", "flow-heun", "sit-sde", "ddim"])
def test_clean_is_the_state_on_times_down_to_zero(pipe: Pipeline, sampler: str) -> None:
    times = pipe.prepare(LABELS, sampler=sampler, steps=4).grid.times(pipe.process, 4, pipe.denoiser().t_min, 1.0)
    down = torch.cat([times, times.new_zeros(1)])
    one = latents(pipe, sampler=sampler, steps=4, end="clean")
    assert torch.equal(one, latents(pipe, sampler=sampler, steps=None, grid=down, end="state"))
    assert torch.equal(one, latents(pipe, sampler=sampler, steps=None, grid=down, end="clean"))


def test_ends_differ_where_the_solver_is_not_eulers(pipe: Pipeline) -> None:
    found = {end: latents(pipe, sampler="heun", end=end) for end in (None, "posterior-mean", "clean", "state")}
    assert torch.equal(found[None], found["posterior-mean"])
    for one, other in (("posterior-mean", "clean"), ("clean", "state"), ("posterior-mean", "state")):
        assert float((found[one] - found[other]).abs().max()) > 1e-3
    euler = {end: latents(pipe, sampler="euler", end=end) for end in ("posterior-mean", "clean")}
    torch.testing.assert_close(euler["posterior-mean"], euler["clean"], atol=1e-5, rtol=1e-5)  # the same formula


@pytest.mark.parametrize("end", ["posterior-mean", "clean", "state"])
def test_an_end_is_recorded_and_replayed(pipe: Pipeline, end: Any) -> None:
    call = pipe.prepare(LABELS, sampler="heun", steps=3, end=end)
    config = json.loads(json.dumps(call.to_config()))
    assert config.get("end", "posterior-mean") == end
    assert Call.from_config(config) == call
    assert [cut.end for cut in pipe.prepare(LABELS, sampler="heun", steps=3, end=end, batch_size=1).batches()] == [
        end,
        end,
    ]
    flags = CallFlags(sampler="heun", steps=3, end=end)
    assert pipe.prepare(LABELS, **flags.options()).end == end


def test_older_records_replay_unchanged(pipe: Pipeline) -> None:
    """They wrote down a last_step that had no effect, and no end: the posterior mean."""
    config = pipe.prepare(LABELS, sampler="flow-sde", steps=STEPS, guidance=None).to_config()
    assert "end" not in config
    for last_step in ("mean", "euler", "tweedie", "none"):
        old = {**config, "sampler": {**config["sampler"], "last_step": last_step}, "grid": {"name": "uniform"}}
        again = Call.from_config(json.loads(json.dumps(old)))
        assert torch.equal(pipe.run(again, "latent").images, latents(pipe, sampler="flow-sde"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sampler": "sit-sde", "end": "posterior-mean"}, "last_step = 'mean'"),
        ({"sampler": "sit-sde", "end": "state"}, "last_step = 'mean'"),
        ({"sampler": "flow-sde:last_step=tweedie", "end": "state"}, "last_step = 'tweedie'"),
        ({"sampler": "flow-sde:last_step=none", "end": "posterior-mean"}, "last_step = 'none'"),
        ({"sampler": "flow-sde:last_step=none"}, "choose another last_step"),
        ({"sampler": "heun", "end": "cleen"}, "did you mean 'clean'"),
        ({"sampler": "heun", "end": 0}, "end must be"),
        ({"sampler": "euler", "end": "state", "steps": 1}, "two times"),
        ({"sampler": "euler", "grid": "uniform:last=1.5"}, "last"),
    ],
)
def test_ends_that_cannot_be_are_refused(pipe: Pipeline, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        latents(pipe, **options)


def test_the_advice_of_a_refused_last_step_works(pipe: Pipeline) -> None:
    """Leave end out; or leave last_step out."""
    assert latents(pipe, sampler="sit-sde").isfinite().all()
    assert latents(pipe, sampler="flow-sde:method=euler-maruyama", end="state").isfinite().all()


def test_no_clean_end_where_the_process_has_noise_at_zero(pipe: Pipeline) -> None:
    noisy = Pipeline(pipe.backbone, process="ve", parameterization="v")
    with pytest.raises(ValueError, match="has noise there"):
        latents(noisy, sampler="euler", end="clean")


def test_defaults_in_short_form_are_kept_as_recipes_read_them(pipe: Pipeline) -> None:
    """Fine-tuning takes them over into a recipe."""
    short = {"sampler": "ddim:eta=0.5", "grid": "karras:rho=5", "guidance": ["cfg:scale=2"], "steps": 4}
    made = Pipeline(pipe.backbone, pipe.process, pipe.parameterization, defaults=short)
    assert made.defaults == {
        "sampler": {"name": "ddim", "eta": 0.5},
        "grid": {"name": "karras", "rho": 5},
        "guidance": [{"name": "cfg", "scale": 2}],
        "steps": 4,
    }


def test_a_pipeline_has_a_default_end(pipe: Pipeline, tmp_path: Path) -> None:
    """A call's own comes first; records of calls without an end stay the posterior mean."""
    made = Pipeline(
        pipe.backbone, pipe.process, pipe.parameterization, defaults={"sampler": "heun", "end": "clean"}
    )
    made.save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path)
    assert (again.end, again.prepare(LABELS, steps=3).end) == ("clean", "clean")
    assert again.prepare(LABELS, steps=3, end="posterior-mean").end == "posterior-mean"
    config = again.prepare(LABELS, steps=3).to_config()
    del config["end"]
    assert Call.from_config(config).end == "posterior-mean"
    again.end = None
    assert again.prepare(LABELS, steps=3).end == "posterior-mean"
    with pytest.raises(ValueError, match="did you mean 'clean'"):
        again.end = "cleen"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="did you mean 'clean'"):
        Pipeline(pipe.backbone, pipe.process, pipe.parameterization, defaults={"end": "cleen"})
