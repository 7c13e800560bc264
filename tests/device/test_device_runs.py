"""Grids, ends, noise, inversion, likelihood and searches on a device that is not the host's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from held import Place, on_both
from meta import META, meta_device
from small import SHAPE, small_denoiser, small_noise
from torch import Tensor

from dinit.checkpoints.interop.text import TextDenoiser, text_backbone
from dinit.diffusion import Process
from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.diffusion.parameterization import V
from dinit.likelihood import Exact, Hutchinson, dequantise, log_likelihood, variational_bound
from dinit.likelihood.ode import METHODS
from dinit.models.analytic import GaussianDenoiser, MixtureDenoiser
from dinit.samplers.base import SAMPLERS
from dinit.samplers.comparison import compare
from dinit.samplers.grids.base import GRIDS
from dinit.samplers.guidance import apply_guidance
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.guidance.negative import Negative
from dinit.samplers.inversion.invert import invert, upward
from dinit.samplers.noise import NoiseSource, RecordedNoise
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.sde.ddpm import DDPM, Variance
from dinit.samplers.search import solver
from dinit.samplers.search.solver import SolverSearch
from dinit.samplers.search.timesteps import Evolution, search_timesteps

PROCESSES: list[Process] = [VP(), EDM(), LinearFlow(), VPDiscrete()]
LABELS = [0, 3]
OPTIONS: dict[str, dict[str, Any]] = {"times": {"values": [1.0, 0.5, 0.1]}}
TIMES = torch.tensor([0.99, 0.5, 0.1], dtype=torch.float64)


def upwards() -> list[str]:
    """Names of the samplers that run from data to noise."""
    found = []
    for name in SAMPLERS:
        try:
            upward(SAMPLERS.create(name))
        except ValueError:
            continue
        found.append(name)
    return found


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "searched"])
def test_grids(name: str) -> None:
    """By name, with all that a run from one makes before its first step."""
    grid = GRIDS.create({"name": name, **OPTIONS.get(name, {})})
    for process in PROCESSES:

        def run(place: Place, process: Process = process) -> Tensor:
            denoiser, steps = small_denoiser(process, place.device), None if name == "times" else 3
            place.watch.waits.clear()
            return DDIM().sample(denoiser, place.put(small_noise()), steps, labels=LABELS, grid=grid)

        try:
            watch = on_both(run)
        except ValueError:
            assert process.num_steps < 3 or name in ("respaced", "vp"), "of a chain or a schedule of its own"
            continue
        assert (watch.read_backs, watch.waits) == ([], [])


@pytest.mark.parametrize("end", ["posterior-mean", "state", "clean"])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp-2m"])
def test_ends(name: str, end: Any) -> None:
    """Of the state at the last time, at t = 0, and of the posterior mean."""

    def run(place: Place) -> Tensor:
        denoiser = small_denoiser(LinearFlow(), place.device)
        place.watch.waits.clear()
        return SAMPLERS.create(name).sample(denoiser, place.put(small_noise()), labels=LABELS, grid=TIMES, end=end)

    watch = on_both(run)
    assert (watch.read_backs, watch.waits) == ([], [])


def test_noise_and_callbacks() -> None:
    """A seed an image, recorded draws, float64, a state to start from, learned variances, steps seen on the way."""
    recorded = torch.randn(3, 2, *SHAPE, generator=torch.Generator().manual_seed(2))

    def run(place: Place) -> list[Tensor]:
        denoiser = small_denoiser(VPDiscrete(), place.device, learns_variance=True)
        x, found = place.put(small_noise()), []
        place.watch.waits.clear()
        given: list[dict[str, Any]] = [
            {"seed": [3, 5]},
            {"noise_source": RecordedNoise(step=recorded)},
            {"initial_noise": x.double()},
            {"initial_state": x},
        ]
        for one in given:
            arguments = {"initial_noise": x, "grid": TIMES, "labels": LABELS, **one}
            steps = DDPM("learned-range").iterate(denoiser, **arguments)
            found += [part for step in steps for part in (step.x_t, step.x0, step.x_s)]
        return found

    watch = on_both(run)
    assert (watch.read_backs, watch.waits) == ([], [])


def test_labels_are_checked_on_the_host() -> None:
    """Before they go to the device; on `meta` there is nothing to check."""
    with meta_device() as watch:
        denoiser = small_denoiser(VP(), META)
        watch.refuse_waits = True
        for labels in (LABELS, torch.tensor(LABELS), torch.tensor([0, 1], device="cpu").int(), None):
            cond = denoiser.condition(labels, 2, META)
            assert cond.embedding.is_meta
            assert cond.labels is not None
            assert cond.labels.is_meta
        with pytest.raises(ValueError, match=r"labels must be in 0 \.\. 2, or 3.*got \[0, 4\]"):
            denoiser.condition([0, 4], 2, META)
        assert denoiser.condition(torch.empty(2, dtype=torch.int64, device=META), 2, META).embedding.is_meta


@pytest.mark.parametrize("name", upwards())
def test_inversion(name: str) -> None:
    """From data to noise, by every sampler that goes that way."""

    def run(place: Place) -> list[Tensor]:
        denoiser = small_denoiser(LinearFlow(), place.device)
        place.watch.waits.clear()
        found = invert(name, denoiser, place.put(small_noise()), labels=LABELS, grid=TIMES)
        again = upward(SAMPLERS.create(name)).sample(
            denoiser, found.x, labels=LABELS, grid=TIMES, initial_state=found.x, state=found.state, end="state"
        )
        return [found.x, again]

    watch = on_both(run)
    assert (watch.read_backs, watch.waits) == ([], [])


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_likelihood_by_the_ode(process: Process) -> None:
    """By every method; by probes and exactly; with the prior's mean taken from the network."""

    def run(place: Place) -> list[Tensor]:
        denoiser, x = small_denoiser(process, place.device), place.put(small_noise())
        place.watch.waits.clear()
        found = []
        traces = [Hutchinson(), Hutchinson("gaussian", 2, fresh=True), Exact(), "hutchinson"]
        for method, trace, prior in zip(METHODS, traces, ("centred", "standard") * 2, strict=True):
            options: dict[str, Any] = {"method": method, "trace": trace, "prior": prior}
            one = log_likelihood(denoiser, x, labels=LABELS, grid=TIMES[:2], **options)
            found += [one.log_prob, one.bits_per_dim, one.latent]
        return found

    watch = on_both(run)
    assert (watch.read_backs, watch.waits) == ([], [])


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "learned-range"])
def test_variational_bound(variance: Variance) -> None:
    """And dequantised pixels."""

    def run(place: Place) -> list[Tensor]:
        denoiser = small_denoiser(VPDiscrete(), place.device, learns_variance=True)
        pixels = place.put((small_noise() * 40 + 128).clamp(0, 255).to(torch.uint8))
        place.watch.waits.clear()
        found = variational_bound(denoiser, pixels / 127.5 - 1, labels=LABELS, grid=TIMES, variance=variance)
        pixels = dequantise(pixels, NoiseSource.from_seed(0, 2))
        return [found.total, found.prior, found.terms, found.x0_mse, found.eps_mse, pixels]

    watch = on_both(run)
    assert (watch.read_backs, watch.waits) == ([], [])


def test_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate's score is read back, and nothing else after its samples."""
    starts: Any = solver.starts
    monkeypatch.setattr(solver, "starts", lambda *args: list(islice(starts(*args), 0, None, 60)))
    results: list[Any] = []

    def run(place: Place) -> Tensor:
        denoiser, x = small_denoiser(LinearFlow(), place.device), place.put(small_noise())
        place.watch.waits.clear()
        search = SolverSearch(population=2, generations=1, fit=1, fits=1, reference_steps=4)
        results.append(search.find(denoiser, 4, x, torch.tensor(LABELS)))
        seen = len(place.watch.read_backs)
        scored: list[float] = []

        def metric(samples: Tensor) -> float:
            scored.append(float(samples.square().mean()))
            return scored[-1]

        evolution = Evolution(population=3, parents=2, generations=1)
        times = search_timesteps(denoiser, "ddim", 3, metric, noise=x, labels=LABELS, evolution=evolution)
        results.append(times)
        if place.device.type == "meta":
            digests = 1  # of the noise, in the cache's key
            assert len(place.watch.read_backs) - seen == len(scored) + digests
        return x

    watch = on_both(run)
    assert watch.waits == []
    assert results[2:] == results[:2]


def test_comparison() -> None:
    """Images of several samplers; the distances between them are read back, one each."""
    results: list[Sequence[float]] = []

    def run(place: Place) -> list[Tensor]:
        denoiser, x = small_denoiser(VP(), place.device), place.put(small_noise())
        found = compare(denoiser, x, LABELS, ["ddim", "ddpm"], 3)
        assert place.watch.read_backs == []
        results.append([round(one, 9) for one in found.rms_to("ddim").values()])
        return list(found.images)

    assert len(on_both(run).read_backs) == 2
    assert results[0] == results[1]


@pytest.mark.parametrize("denoiser_of", [GaussianDenoiser, MixtureDenoiser])
def test_closed_forms(denoiser_of: Any) -> None:
    """The analytic denoisers serve runs on any device, densities too."""
    means = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def run(place: Place) -> list[Tensor]:
        if denoiser_of is GaussianDenoiser:
            denoiser = GaussianDenoiser(VP(), means[0], 0.5, SHAPE)
        else:
            denoiser = MixtureDenoiser(VP(), means, means.abs(), component_class=torch.tensor([0, 1, 1]))
        x, times = place.put(small_noise()), torch.tensor([0.8, 0.3], dtype=torch.float64)
        density = [denoiser.log_prob(x, t) for t in (0.5, times, place.put(times))]
        return [DDIM().sample(denoiser, x, 3, labels=[0, denoiser.num_classes]), *density]

    watch = on_both(run)
    assert (watch.read_backs, watch.waits) == ([], [])


class TextNetwork(torch.nn.Module):
    """In the place of one of diffusers that takes an encoded text."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.config = {"in_channels": SHAPE[0], "out_channels": SHAPE[0], "sample_size": SHAPE[1]}

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool
    ) -> tuple[Tensor]:
        assert len(timestep) == len(sample)
        return (self.scale * sample * encoder_hidden_states.mean((1, 2))[:, None, None, None],)


def test_text() -> None:
    """Prompts' tables go to the device once; classes of a guidance are embedded once a run."""
    texts = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(4))
    counted: list[int] = []

    def run(place: Place) -> list[Tensor]:
        backbone = text_backbone(TextNetwork().to(place.device), texts, texts[:1] * 2, None)
        look_up, calls = backbone.rows, []
        place.watch.waits.clear()
        backbone.rows = lambda labels: calls.append(len(labels)) or look_up(labels)
        denoiser = TextDenoiser(backbone, VP(), V())
        found = [denoiser.condition(labels, 2, place.device).embedding for labels in ([1, 2], [2, 3], [3, 3])]
        guided = apply_guidance(denoiser, [Negative(2.0, 1), CFG(2.0)])
        found.append(DDIM().sample(guided, place.put(small_noise()), 3, labels=[1, 3]))
        counted.append(len(calls))
        return found

    watch = on_both(run)
    assert (watch.read_backs, watch.waits) == ([], [])
    assert counted == [2 + 2, 3 + 2], "per condition (of the null class alone none on the host), then two a run"
