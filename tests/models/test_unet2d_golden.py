"""diffusers' UNet2DModel through dinit's adapter, against its golden tensors: unconditional and with classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from reference import Reference, references, relative_error

from dinit.checkpoints.from_diffusers import denoiser_from_diffusers


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    files = [f for f in references(metafunc.config.getoption("--parity")) if f.name == "UNet2DModel"]
    metafunc.parametrize("golden", files, ids=lambda file: file.path.stem)


def denoiser(file: Reference) -> Any:
    network = UNet2DModel(**file.arguments).eval()
    network.load_state_dict(file.state)
    return denoiser_from_diffusers(SimpleNamespace(unet=network, scheduler=DDPMScheduler()))


@torch.no_grad()
def test_the_adapter_gives_the_published_output(golden: Reference) -> None:
    backbone, given = denoiser(golden).backbone, golden.tensors
    labels = given.get("in.y", torch.zeros(len(given["in.x"]), dtype=torch.int64))
    out = backbone(given["in.x"], given["in.t"], backbone.embed(labels))
    assert relative_error(out, given["out.sample"]) <= golden.tolerance


@torch.no_grad()
def test_the_denoiser_asks_at_the_level_and_returns_its_eps(golden: Reference) -> None:
    """Level i stands at t = (i + 1) / 1000; one time per sample, and one for all."""
    model, given = denoiser(golden), golden.tensors
    cond = model.condition(given.get("in.y"), len(given["in.x"]))
    times = (given["in.t"].double() + 1) / 1000
    theirs = given["out.sample"][:, : given["in.x"].shape[1]]  # without the variance that some have learned
    eps = model(given["in.x"], times, cond).eps
    assert relative_error(eps, theirs) <= 100 * golden.tolerance  # eps goes through x0 and back
    alone = model(given["in.x"], float(times[0]), cond).eps
    assert relative_error(alone[:1], theirs[:1]) <= 100 * golden.tolerance
