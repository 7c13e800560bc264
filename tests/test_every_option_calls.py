"""Every keyword of a pipeline's call: it decides the call, is recorded, and is what the sampler is run with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_every_option import Reached, pipeline
from torch import Tensor

from dinit.cli.options import CallFlags
from dinit.pipelines.call import Call, CallOptions
from dinit.samplers import DDIM, SAMPLERS, EDMHeun, NoiseSource, Sampler, Step
from dinit.samplers.guidance import CFG, ClipX0

# By keyword of a pipeline's call: values, each with further keywords that it needs.
CALLED: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "sampler": [("heun", {}), (DDIM(0.5), {})],
    "steps": [(7, {})],
    "grid": [("karras:rho=5", {}), (torch.tensor([1.0, 0.6, 0.1]), {})],
    "end": [("clean", {}), ("state", {})],
    "guidance": [(None, {}), (2.5, {}), (["cfg:scale=3", "clip-x0"], {}), (["clip-x0", "cfg:scale=3"], {})],
    "batch_size": [(3, {})],
    "guidance_scale": [(3.0, {}), (1.0, {})],
    "num_inference_steps": [(7, {})],
    "eta": [(0.5, {})],
    "num_images": [(3, {"labels": 1})],
    "seed": [(5, {}), ([5, 6], {})],
    "start_index": [(4, {}), (4, {"seed": 5})],
    "class_labels": [([3, None], {"labels": None})],
    "generator": [(3, {}), ([3, 4], {})],  # seeds of generators
    "labels": [([3, None], {}), (["7", "2"], {})],
}
ELSEWHERE = {
    *("image", "strength", "mask", "measurement", "method"),  # tests/pipelines/test_given.py
    *("cache", "edits"),  # tests/pipelines/test_reusing_calls.py
}


def generators(seeds: Any) -> Any:
    made = [torch.Generator().manual_seed(seed) for seed in (seeds if isinstance(seeds, list) else [seeds])]
    return made if isinstance(seeds, list) else made[0]


def test_every_keyword_of_a_call_decides_it_and_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each changes the call, stands in its record, and is what the sampler is run with."""
    run: dict[str, Any] = {}
    wrapped: list[Any] = []

    def iterate(self: Sampler, denoiser: Any, noise: Tensor, steps: int, **given: Any) -> Iterator[Step]:
        run.update(given, sampler=self, steps=steps, noise=noise)
        raise Reached

    assert CALLED.keys() == {"labels", *CallOptions.__annotations__} - ELSEWHERE
    for keyword, values in CALLED.items():
        for value, beside in values:
            plain = {"labels": [1, 2], "sampler": "ddim", "steps": 4, "guidance": "cfg", **beside}
            if keyword in ("num_inference_steps", "guidance_scale"):
                del plain["steps" if keyword == "num_inference_steps" else "guidance"]

            def options(value: Any = value, keyword: str = keyword, plain: Any = plain) -> dict[str, Any]:
                return {**plain, keyword: generators(value) if keyword == "generator" else value}

            before, call = pipeline().prepare(**plain), pipeline().prepare(**options())
            assert call != before, keyword
            assert Call.from_config(json.loads(json.dumps(call.to_config()))) == call, keyword
            wrapped.clear()
            with monkeypatch.context() as patch:
                patch.setattr(Sampler, "iterate", iterate)
                for guidance in (CFG, ClipX0):
                    patch.setattr(guidance, "wrap", lambda self, denoiser: wrapped.append(self) or denoiser)
                with pytest.raises(Reached):
                    pipeline()(**options())
            source, first = NoiseSource(call.keys), call.batches()[0]
            assert (run["sampler"], run["steps"], run["grid"]) == (call.sampler, call.steps, call.grid), keyword
            assert run["end"] == call.end, keyword
            assert tuple(wrapped) == call.guidance, keyword
            assert run["labels"].tolist() == [10 if label is None else label for label in first.labels], keyword
            assert run["noise_source"] == source, keyword
            assert torch.equal(run["noise"], source.normal("initial", 0, run["noise"])), keyword


def test_calls_that_keywords_make() -> None:
    """Values that a call fills in, as numbers."""
    pipe = pipeline()
    assert pipe.prepare(1, num_images=3, start_index=4, seed=5).keys == ((5, 4), (5, 5), (5, 6))
    assert pipe.prepare([1, 2], seed=[5, 6]).keys == ((5, 0), (6, 0))
    assert pipe.prepare([1, None], guidance_scale=3.0).guidance == (CFG(3.0),)
    assert pipe.prepare([1], guidance_scale=1.0).guidance == ()
    assert pipe.prepare([1], guidance=["clip-x0", "cfg:scale=3"]).guidance == (ClipX0(), CFG(3.0))
    assert pipe.prepare([1], sampler="ancestral", eta=0.25).sampler == SAMPLERS.create("ancestral", eta=0.25)
    cuts = pipe.prepare([1, 2, 3, 4, 5], batch_size=2, seed=1).batches()
    assert [(cut.labels, cut.keys) for cut in cuts] == [
        ((1, 2), ((1, 0), (1, 1))),
        ((3, 4), ((1, 2), (1, 3))),
        ((5,), ((1, 4),)),
    ]


def test_further_options_of_a_sampler_on_the_command_line() -> None:
    flags = CallFlags(sampler="edm-heun:s_churn=2", sampler_options=["s_tmin=0.5", "alpha=0.6"], batch_size=3)
    call = pipeline().prepare(1, **flags.options())
    assert call.sampler == EDMHeun(s_churn=2, s_tmin=0.5, alpha=0.6)
    assert call.batch_size == 3
    own = CallFlags(sampler_options=["eta=0.5"]).options({"name": "ddim"})
    assert pipeline().prepare(1, **own).sampler == DDIM(0.5)
