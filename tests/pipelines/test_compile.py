"""`Pipeline(compile=True)`: one compilation for all steps, and the numbers of the eager network."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from dinit import Pipeline
from dinit.models.base import BACKBONES

LABELS = [3, 1, 4, 1]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["dit", "dico"])
def test_compiles_once_for_all_steps_and_runs(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name].preset("tiny")
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    arguments = {"process": "vp-discrete", "parameterization": "v"}
    expected = Pipeline(backbone, **arguments)(LABELS, sampler="ddim", steps=9, output_type="raw").images
    counter = CompileCounter()
    pipe = Pipeline(backbone, **arguments, compile={"backend": counter})
    images = pipe(LABELS, sampler="ddim", steps=9, output_type="raw").images
    assert counter.frame_count == 1
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    pipe(LABELS, sampler="heun", grid="karras", steps=7, seed=1, output_type="raw")
    assert counter.frame_count == 1
    # Twice the batch: once more, for any batch size from there on.
    for count in (2, 3, 8):
        pipe(LABELS * count, sampler="ddim", steps=3, guidance="cfg", output_type="raw")
    assert counter.frame_count == 2


# Without vector instructions inductor writes at::vec into C++ that does not declare it (torch 2.13).
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="inductor needs AVX2 or better")
@pytest.mark.slow
def test_a_shipped_pipeline_under_inductor() -> None:
    """The one that compiles fastest: half a minute without inductor's cache; digits-dico takes twice that."""
    eager = Pipeline.from_pretrained("digits-dit")(LABELS, steps=4, output_type="raw").images
    pipe = Pipeline.from_pretrained("digits-dit", compile=True)
    torch.testing.assert_close(pipe(LABELS, steps=4, output_type="raw").images, eager, rtol=1e-3, atol=1e-4)
