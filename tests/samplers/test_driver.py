"""The loop, grids and noise: seeds, purity, no host-device synchronisation, warnings, refusals."""

from __future__ import annotations

import itertools
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from score_sde_loop import ScoreSDE
from torch import Tensor

from dinit.diffusion import PROCESSES, Condition, Denoised, Denoiser, WrappedDenoiser
from dinit.diffusion.continuous import EDM, VP, LinearFlow, SubVP
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import GRIDS, SAMPLERS, NoiseSource, RecordedNoise, Sampler
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.respacing import Respaced
from dinit.samplers.grids.times import Times
from dinit.samplers.grids.timesteps import Timesteps
from dinit.samplers.grids.uniform import Uniform
from dinit.samplers.guidance import GUIDANCES, apply_guidance
from dinit.samplers.guidance.cads import CADS
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.sde.ddpm import DDPM
from dinit.samplers.sde.predictor_corrector import PredictorCorrector

F64 = torch.float64


def mixture(process=None) -> MixtureDenoiser:
    means = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    return MixtureDenoiser(process or VP(), means, torch.full_like(means, 0.05), None, torch.tensor([0, 0, 1, 1]))


def noise(batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 1, 3, 3, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture(params=[*SAMPLERS.names(), "pndm:start=prk"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return SAMPLERS.create(request.param)


# --- seeds and purity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [None, DDIM(1.0), PredictorCorrector("ancestral", "langevin")], ids=repr)
def test_same_seed_same_image_whatever_the_batch(made: Sampler | None, sampler: Sampler) -> None:
    solver, model, labels = made or sampler, mixture(), [0, 1, 0, 1]
    guided = apply_guidance(model, [CFG(2.0), CADS(0.3, 0.9)])

    def run(start: int, stop: int, seed: int) -> Tensor:
        draws = NoiseSource.from_seed(seed, stop - start, start)
        return solver.sample(guided, noise()[start:stop], 10, labels=labels[start:stop], noise_source=draws)

    whole = run(0, 4, 7)
    for cut in (1, 2, 3):
        assert torch.allclose(whole, torch.cat([run(0, cut, 7), run(cut, 4, 7)]), atol=1e-4)
    if solver.stochastic:
        assert not torch.allclose(whole, run(0, 4, 8), atol=1e-2)


def test_two_runs_may_share_a_sampler(sampler: Sampler) -> None:
    """Interleaved step by step, and from two threads: nothing is remembered on the object."""
    model = mixture()
    alone = [list(sampler.iterate(model, noise() * w, 9, seed=w)) for w in (1, 2)]
    iterators = [sampler.iterate(model, noise() * w, 9, seed=w) for w in (1, 2)]
    for steps in zip(*iterators, *alone, strict=True):
        assert torch.equal(steps[0].x_s, steps[2].x_s)
        assert torch.equal(steps[1].x_s, steps[3].x_s)
    with ThreadPoolExecutor(2) as pool:
        threads = list(pool.map(lambda w: sampler.sample(model, noise() * w, 9, seed=w), (1, 2)))
    for found, steps in zip(threads, alone, strict=True):
        assert torch.equal(found, steps[-1].x_s)
    with pytest.raises(FrozenInstanceError):
        sampler.anything = 1  # type: ignore[attr-defined]


def test_the_input_is_not_changed(sampler: Sampler) -> None:
    x = noise()
    before = x.clone()
    sampler.sample(mixture(), x, 5)
    assert torch.equal(x, before)


def test_state_keeps_the_noise_dtype(sampler: Sampler) -> None:
    single, double = (sampler.sample(mixture(), noise(dtype=d), 8, seed=1) for d in (torch.float32, F64))
    assert (single.dtype, double.dtype) == (torch.float32, F64)
    # bdia-edm and ab multiply rounding errors by steps of the noise level, down from 157: 7.4e-4. Most have 1e-5.
    assert (single - double).abs().max() < 4e-3


def test_iterate_tells_every_step(sampler: Sampler) -> None:
    steps = list(sampler.iterate(mixture(), noise(), 6, end="posterior-mean"))
    assert [step.index for step in steps] == list(range(6))
    assert all(step.total == 6 for step in steps)
    assert all(torch.equal(a.x_s, b.x_t) for a, b in itertools.pairwise(steps))
    assert [step.t for step in steps] == sorted((step.t for step in steps), reverse=True)
    assert torch.equal(steps[-1].x_s, steps[-1].x0), "the end is the posterior mean at the last level"
    assert torch.equal(sampler.sample(mixture(), noise(), 6, end="posterior-mean"), steps[-1].x_s)


def test_x0_of_a_step_is_that_of_its_first_evaluation(sampler: Sampler) -> None:
    """However many evaluations it takes, the pictures of a run are of the states at its own times."""
    model = Counted(mixture())
    for step in sampler.iterate(model, noise(), 6):
        assert torch.equal(step.x0, model.found[0])
        assert len(model.found) == step.nfe - model.before
        model.found, model.before = [], step.nfe


class Counted(WrappedDenoiser):
    """Keeps what it returned."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.found: list[Tensor] = []
        self.before = 0

    def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
        denoised = self.inner(x_t, t, cond)
        self.found.append(denoised.x0)
        return denoised


def test_initial_takes_the_place_of_noise() -> None:
    process = EDM()
    x = noise(dtype=F64)
    a = Euler().sample(mixture(process), x, 8)
    assert torch.equal(a, Euler().sample(mixture(process), x, 8, initial_state=x * process.sigma_max))


# --- no synchronisation ------------------------------------------------------------------------------------------


class Tracked(Tensor):
    """A tensor on which reading a value back to Python is an error, and so is every tensor computed from it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in READS:
            raise AssertionError(f"{func.__name__} reads a tensor back in the loop")
        return super().__torch_function__(func, types, args, kwargs or {})


READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.numpy,
    Tensor.cpu,
    Tensor.nonzero,
    torch.nonzero,
}


def test_tracking_catches_a_read() -> None:
    x = noise().as_subclass(Tracked)
    with pytest.raises(AssertionError, match="reads a tensor back"):
        bool((x + 1).sum() > 0)


@pytest.mark.parametrize("guidance", [*GUIDANCES.names(), "nested"])
def test_the_loop_reads_no_tensor_back(sampler: Sampler, guidance: str) -> None:
    if sampler.claims().cost_depends_on == "state":
        pytest.skip("an adaptive solver reads its error estimate back")
    options = {
        "cfg": {"scale": 2.0, "low": -2.0, "high": 2.0, "rescale": 0.5, "channels": 1, "schedule": "log-snr"},
        "apg": {"eta": 0.5, "radius": 1.0, "momentum": -0.5},
        "cfg-zero*": {"zero_steps": 1},
        "classifier": {"classifier": lambda x, label: x.flatten(1)[:, :2]},
        "discriminator": {"discriminator": lambda x, k, labels: x.flatten(1).sum(1) * k.alpha},
        "autoguidance": {"weak": mixture()},
        "noise-damped": {"base": mixture(), "max_log_snr": 0.0},
    }
    nested = [CADS(0.3, 0.9), CFG(2.0)]
    spec = nested if guidance == "nested" else {"name": guidance, **options.get(guidance, {})}
    model = apply_guidance(mixture(), spec)
    if model.required_outputs - sampler.claims().supported_outputs:
        pytest.skip("this guidance speaks through more than x0")
    x = noise().as_subclass(Tracked)
    # The source of this test hands out recorded draws, as drawing them is the host's business.
    draws = RecordedNoise(step=torch.randn(64, *x.shape), cads=torch.randn(8, len(x), 4))
    found = sampler.sample(model, x, 6, labels=[0, 1, 0, 1], noise_source=draws)
    assert isinstance(found, Tracked)


@pytest.mark.parametrize("guidance", [[], [CADS(0.3, 0.9), CFG(2.0, low=-2.0, high=2.0)]], ids=["plain", "guided"])
def test_the_loop_reads_no_schedule_back_either(
    sampler: Sampler, guidance: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even from the CPU: then the loop can be captured whole."""
    if sampler.claims().cost_depends_on == "state":
        pytest.skip("an adaptive solver reads its error estimate back")
    model = apply_guidance(mixture(), guidance)
    x = noise()
    draws = RecordedNoise(step=torch.randn(64, *x.shape), cads=torch.randn(8, len(x), 4))
    steps = sampler.iterate(model, x, 6, labels=[0, 1, 0, 1], noise_source=draws)  # planned, not begun
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, name, lambda self, name=name: reads.append(name))
    list(steps)
    monkeypatch.undo()
    assert reads == []


# --- grids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES.names())
@pytest.mark.parametrize("grid", GRIDS.names())
def test_every_grid_gives_decreasing_times_in_range(grid: str, process: str, tmp_path: Path) -> None:
    made = PROCESSES.create(process)
    for steps in (1, 2, 3, 10, 37):
        values = [1 - i / steps for i in range(steps)]
        cache = tmp_path / f"{steps}.json"
        cache.write_text(json.dumps({"times": values}))
        given = {"times": {"values": tuple(values)}, "searched": {"path": str(cache)}}
        times = GRIDS.create(grid, **given.get(grid, {})).times(made, steps, made.t_min, 1.0)
        assert times.shape == (steps,)
        assert times.dtype == F64
        assert bool((times.diff() < 0).all())
        assert float(times[0]) == 1.0 or (grid == "respaced" and steps == 1)
        assert bool((made.scales(times).sigma > 0).all())


def test_log_snr_and_karras_grids_are_even_in_their_variable() -> None:
    vp = VP()
    assert vp.log_snr(LogSNR().times(vp, 20, 1e-3, 1.0)).diff().std() < 1e-10
    roots = vp.scales(Karras(5.0).times(vp, 20, 1e-3, 1.0)).noise_level ** (1 / 5)
    assert roots.diff().std() < 1e-10
    assert Uniform().times(vp, 4, 1e-3, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25]


def test_discrete_grids_meet_the_levels_exactly() -> None:
    chain = VPDiscrete()
    for grid in (Timesteps("trailing"), Timesteps("leading", 1), Timesteps("linspace"), Respaced()):
        times = grid.times(chain, 20, chain.t_min, 1.0)
        levels = (times * 1000).round().long() - 1
        # alpha is exp(log(alpha)) of a shorter vector than the table's: the last digits may differ.
        torch.testing.assert_close(chain.scales(times).alpha, chain.alphas[levels], rtol=1e-14, atol=0)


def test_a_grid_of_fixed_length_needs_no_steps() -> None:
    for grid in (Respaced("10,5,3"), Respaced("ddim25"), Times((1.0, 0.5, 0.2))):
        steps = list(Euler().iterate(mixture(VPDiscrete()), noise(), grid=grid))
        assert len(steps) == grid.length


def test_a_last_time_without_noise_is_left_out_or_refused() -> None:
    """End 'posterior-mean' stops at the last noisy time; end 'state' goes on to the clean one."""
    model, times = mixture(LinearFlow()), torch.tensor([1.0, 0.5, 0.0], dtype=F64)
    a = DDIM().sample(model, noise(dtype=F64), grid=times)
    b = DDIM().sample(model, noise(dtype=F64), grid=times, end="state")
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert Heun().sample(model, noise(), grid=times, end="state").isfinite().all()


# --- warnings ----------------------------------------------------------------------------------------------------


def test_a_run_that_ends_noisy_warns() -> None:
    with pytest.warns(UserWarning, match='grid="karras"'):
        Euler().sample(mixture(EDM()), noise(), 30, grid="uniform")
    with pytest.warns(UserWarning, match="flat"):
        DDIM().sample(mixture(VP()), noise(), grid=torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6]))
    with pytest.warns(UserWarning, match=r"near the end of 64 times, at t = 0\.017"):
        Euler().sample(mixture(EDM()), noise(), 64, grid="respaced")


@pytest.mark.parametrize("process", PROCESSES.names())
def test_default_pairings_do_not_warn(process: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (1, 2, 5, 6, 10, 12, 50):
            DDIM().sample(mixture(PROCESSES.create(process)), noise(1), steps)
        walk = torch.tensor([1.0, 0.95, 0.9, 0.85, 0.8], dtype=F64)
        DDIM().sample(mixture(PROCESSES.create(process)), noise(1), grid=walk, end="state")


# --- refusals ----------------------------------------------------------------------------------------------------


TO_CLEAN = torch.tensor([1.0, 0.5, 0.0], dtype=F64)


def run(sampler: Sampler | None = None, model: Denoiser | None = None, **options) -> Tensor:
    return (sampler or DDIM()).sample(model or mixture(), noise(), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(steps=0), "at least 1; got 0"),
        (lambda: run(steps=-3), "at least 1"),
        (lambda: run(steps=2.5), "whole number"),
        (lambda: run(steps=True), "whole number"),
        (lambda: run(), "number of steps"),
        (lambda: run(steps=3, grid="karas"), "did you mean 'karras'"),
        (lambda: run(steps=3, grid=torch.tensor([1.0, 0.5])), "contradicts"),
        (lambda: run(grid=torch.tensor([0.5, 0.7])), "decreasing"),
        (lambda: run(grid=torch.tensor([])), "decreasing"),
        (lambda: run(grid=torch.tensor([1.5, 0.7])), r"lie in \[0"),
        (lambda: run(steps=3, end="x0"), "'posterior-mean' or 'state'"),
        (lambda: run(steps=3, labels=[0, 1, 2, 7]), "labels must be in"),
        (lambda: run(steps=3, labels=[0, 1]), "expected 4 labels"),
        (lambda: run(DDIM(1.0), steps=3, seed=[1, 2]), "one for each of 4"),
        (lambda: run(steps=5, grid=Times((1.0, 0.5))), "has 2 times"),
        (lambda: run(steps=5, grid=Respaced("ddim25")), "25 times"),
        (lambda: run(model=mixture(VPDiscrete()), steps=2000, grid=Respaced()), "do not fit"),
        (lambda: run(model=mixture(VPDiscrete()), grid=Respaced("ddim999")), "no whole stride"),
        (
            lambda: run(PredictorCorrector(), grid=torch.tensor([1.0, 0.5, 0.0]), end="state"),
            "no step at sigma = 0",
        ),
        (lambda: run(Heun(), grid=torch.tensor([1.0, 0.5, 0.0]), end="state"), "infinite"),
        (lambda: run(ScoreSDE(VP(), 10), steps=10), "its own times"),
        (lambda: run(ScoreSDE(SubVP(), 10, corrector="none"), steps=10), "is for SubVP"),
        (lambda: ScoreSDE(SubVP()), "no corrector for SubVP"),
        (lambda: ScoreSDE(LinearFlow()), "runs on VP, SubVP and VE"),  # type: ignore[arg-type]
        (lambda: ScoreSDE(SubVP(), 10, "ancestral", "none"), "not SubVP's"),
        (lambda: DDIM(1.5), r"eta must be in \[0, 1\]"),
        (lambda: DDIM(-0.1), r"eta must be in \[0, 1\]"),
        (lambda: DDPM("small"), "did you mean 'fixed-small'"),  # type: ignore[arg-type]
        (lambda: DPMpp2M("euler"), "'midpoint' or 'heun'"),  # type: ignore[arg-type]
        (lambda: DPMpp2M(order=3), "order must be 1 or 2"),  # type: ignore[arg-type]
        (lambda: PredictorCorrector("reverse"), "unknown predictor"),  # type: ignore[arg-type]
        (lambda: PredictorCorrector(corrector="langvin"), "did you mean 'langevin'"),  # type: ignore[arg-type]
        (lambda: PredictorCorrector("none", "none"), "nothing to run"),
        (lambda: PredictorCorrector(snr=0.0), "snr must be positive"),
        (lambda: PredictorCorrector(corrector_steps=0), "at least 1"),
        (lambda: Respaced("ten"), "must read like"),
        (lambda: Respaced("ddim10,5"), "must read like"),
        (lambda: Karras(rho=0.0), "rho must be positive"),
        (lambda: SAMPLERS.create("dddim"), "did you mean 'ddim'"),
        (lambda: SAMPLERS.create("ddim", etta=1), "did you mean 'eta'"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


class NeverAsked(MixtureDenoiser):
    def __call__(self, *_) -> Denoised:
        raise AssertionError("the network was asked")


@pytest.mark.parametrize("variance", ["learned-range", "learned"])
@pytest.mark.parametrize("guidance", [None, CFG(2.0), CADS()])
def test_a_variance_that_was_not_learned_is_refused_before_the_first_evaluation(variance, guidance) -> None:
    like = mixture()
    model = NeverAsked(like.process, like.means, like.variances, like.weights, like.component_class)
    with pytest.raises(ValueError, match="needs a network that learned its variance"):
        run(DDPM(variance), apply_guidance(model, guidance).given([0, 1, 0, 1]), steps=3)
    model.learns_variance = True
    with pytest.raises(AssertionError, match="the network was asked"):
        run(DDPM(variance), apply_guidance(model, guidance).given([0, 1, 0, 1]), steps=3)
