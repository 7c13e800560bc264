"""The grid of a run that names none: solvers whose steps the process's usual grid does not suit bring their own."""

from __future__ import annotations

import pytest
import torch

from dinit import Pipeline
from dinit.diffusion import PROCESSES
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.evaluation.features.digits_classifier import SHIPPED, load_classifier
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import SAMPLERS
from dinit.samplers.comparison import compare
from dinit.samplers.grids.default import default_grid
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.grids.uniform import Uniform
from dinit.samplers.inversion.bdia import BDIAEDM
from dinit.samplers.inversion.invert import invert
from dinit.samplers.ode.edm import EDMHeun
from dinit.samplers.sde.predictor_corrector import PredictorCorrector

CHAIN = VPDiscrete("cosine")


def test_a_solver_in_the_noise_level_takes_even_log_snr_where_the_level_starts_huge() -> None:
    for name in ("edm-heun", "dpm-2", "restart", "lms", "pndm"):
        sampler = SAMPLERS.create(name)
        assert sampler.grid_for(CHAIN) == LogSNR()
        assert sampler.grid_for(EDM()) == (Shifted(0.92) if name == "lms" else Karras())
        assert sampler.grid_for(LinearFlow()) == Uniform()  # its first step there is along the straight path
    assert PredictorCorrector("edm-heun").grid_for(CHAIN) == LogSNR()
    assert BDIAEDM().grid_for(EDM()) == Shifted()


@pytest.mark.parametrize("process", PROCESSES.names())
def test_others_take_the_process_s_usual_one(process: str) -> None:
    made = PROCESSES.create(process)
    assert SAMPLERS.create("ddim").grid_for(made) == default_grid(made)


def test_it_is_what_a_run_and_its_inversion_take_and_a_named_grid_wins() -> None:
    model = GaussianDenoiser(CHAIN, 0.3, 0.5, (1, 2, 2))
    noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = EDMHeun().sample(model, noise, 6)
    assert torch.equal(own, EDMHeun().sample(model, noise, 6, grid=LogSNR()))
    assert not torch.allclose(own, EDMHeun().sample(model, noise, 6, grid="uniform"))
    found = invert(BDIAEDM(), model, own, 6)
    assert torch.equal(found.x, invert(BDIAEDM(), model, own, 6, grid=Shifted()).x)


def test_a_pipeline_asks_the_sampler_after_its_own_default() -> None:
    pipe = Pipeline.from_pretrained("digits-dico")
    assert pipe.prepare([3], sampler="edm-heun").grid == LogSNR()
    assert pipe.prepare([3], sampler="edm-heun", grid="uniform").grid == Uniform()
    assert pipe.prepare([3]).grid == Uniform()
    pipe._defaults["grid"] = {"name": "karras"}
    assert pipe.prepare([3], sampler="edm-heun").grid == Karras()


@pytest.mark.parametrize(
    ("pipeline", "names"),
    [
        ("digits-dico", ["edm-heun", "lms", "pndm", "restart", "bdia-edm"]),
        ("digits-unet", ["bdia-ddim", "bdia-edm", "predictor-corrector"]),
    ],
)
def test_swapped_samplers_draw_the_digits_they_are_asked_for(pipeline: str, names: list[str]) -> None:
    """These drew other classes, or none, at 20 evaluations on the usual grids."""
    pipe, classifier = Pipeline.from_pretrained(pipeline), load_classifier(SHIPPED)
    noise = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = compare(pipe.denoiser(), noise, list(range(10)), names, nfe=20)
        for name, images in zip(names, found.images, strict=True):
            seen = classifier.head(classifier.features(images.clamp(-1, 1))).argmax(1)
            assert int((seen == torch.arange(10)).sum()) >= 9, name
