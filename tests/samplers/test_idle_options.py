"""Options that cannot act beside the others, or in a run, are refused by name; those that act are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dinit import Pipeline
from dinit.diffusion import PROCESSES
from dinit.models.analytic import GaussianDenoiser
from dinit.pipelines.call import Call
from dinit.samplers import GRIDS, SAMPLERS
from dinit.samplers.idle import IdleOption
from dinit.samplers.inversion.invert import invert

NOISE = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(spec: str, process: str = "edm", **options: Any) -> torch.Tensor:
    denoiser = GaussianDenoiser(PROCESSES.create(process), 0.1, 0.4, (1, 4, 4))
    return SAMPLERS.create(spec).sample(denoiser, NOISE, **{"steps": 6, "seed": 1, **options})


@pytest.mark.parametrize(
    ("idle", "acting", "names"),
    [
        ("edm-heun:s_noise=1.003", "edm-heun:s_noise=1.003,s_churn=3", ["s_noise"]),
        ("edm-heun:s_tmin=0.05,s_tmax=50", "edm-heun:s_tmin=0.05,s_tmax=50,s_churn=3", ["s_tmin", "s_tmax"]),
        ("edm-euler:s_tmin=0.1", "edm-euler:s_tmin=0.1,s_churn=3", ["s_tmin"]),
        ("dpm-2:s_tmax=1", "dpm-2:s_tmax=1,s_churn=3", ["s_tmax"]),
        ("ancestral:eta=0,s_noise=1.1", "ancestral:eta=0.1,s_noise=1.1", ["s_noise"]),
        ("dpmpp-sde:eta=0,s_noise=1.1", "dpmpp-sde:s_noise=1.1", ["s_noise"]),
        ("dpmpp-2m-sde:eta=0,s_noise=1.1", "dpmpp-2m-sde:s_noise=1.1", ["s_noise"]),
        ("dpmpp-3m-sde:eta=0,s_noise=1.1", "dpmpp-3m-sde:s_noise=1.1", ["s_noise"]),
        ("er-sde:noise_scale=ode,s_noise=1.1", "er-sde:s_noise=1.1", ["s_noise"]),
        ("flow-sde:norm=0,diffusion=linear", "flow-sde:norm=0,diffusion=decreasing", ["diffusion"]),
    ],
)
def test_options_beside_each_other(idle: str, acting: str, names: list[str]) -> None:
    """The refused option changes the result once its remedy is taken."""
    with pytest.raises(IdleOption, match="does nothing") as refused:
        SAMPLERS.create(idle)
    assert list(refused.value.names) == names
    assert all(f"{name} = " in str(refused.value) for name in names)
    without = SAMPLERS.create(acting)
    plain = acting.split(":")[0]
    for name in names:
        kept = [one for one in acting.split(":")[1].split(",") if not one.startswith(f"{name}=")]
        plain = ":".join([acting.split(":")[0], ",".join(kept)]).rstrip(":")
        assert SAMPLERS.create(plain) != without
        assert not torch.equal(run(plain), run(acting)) or name in ("s_tmin", "s_tmax")


@pytest.mark.parametrize(
    ("spec", "options", "named"),
    [
        ("ddim-inverse:iterations=3", {}, "iterations = 3"),
        ("flow-sde:last_step=euler", {"process": "flow", "end": "state"}, "last_step"),
        ("flow-sde:last_step=mean", {"process": "ve"}, "'clean'"),
    ],
)
def test_options_in_a_run(spec: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        run(spec, **options)


@pytest.mark.parametrize(
    "spec", ["edm-heun:s_churn=3,s_tmin=200", "edm-euler:s_churn=3,s_tmax=0.0001", "dpm-2:s_churn=2,s_tmax=0.0001"]
)
def test_churn_that_no_step_has_is_warned_of(spec: str) -> None:
    with pytest.warns(UserWarning, match="s_churn = . adds no noise"):
        run(spec)


def test_an_interval_that_is_never_restarted_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="never restarted"):
        run("restart", "flow")
    plain, restarted = run("restart:s_noise=0", "flow", steps=30), run("restart", "flow", steps=30)  # the advice
    assert not torch.equal(plain, restarted)


def test_iterations_act_on_the_way_up() -> None:
    denoiser = GaussianDenoiser(PROCESSES.create("vp"), 0.1, 0.4, (1, 4, 4))
    once, thrice = (invert(f"ddim-inverse:iterations={n}", denoiser, NOISE / 2, 8).x for n in (1, 3))
    assert not torch.equal(once, thrice)


def test_an_offset_is_for_leading_timesteps() -> None:
    assert GRIDS.create("timesteps:spacing=leading,offset=1") != GRIDS.create("leading")
    for spacing in ("trailing", "linspace"):
        with pytest.raises(IdleOption, match="offset = 1"):
            GRIDS.create(f"timesteps:spacing={spacing},offset=1")


def test_records_that_older_versions_wrote_replay() -> None:
    """They took such options, which had no effect."""
    pipe = Pipeline.from_pretrained("digits-dit")
    call = pipe.prepare([1], sampler="edm-heun", steps=3, guidance=None)
    config = json.loads(json.dumps(call.to_config()))
    config["sampler"] |= {"s_noise": 1.003, "s_tmin": 0.05}
    assert Call.from_config(config) == call
    with pytest.warns(UserWarning, match="s_tmin, s_noise"):
        again = Pipeline(
            pipe.backbone, pipe.process, pipe.parameterization, defaults={"sampler": config["sampler"]}
        )
    assert again.sampler == call.sampler
