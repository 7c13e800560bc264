"""Grids in the noise level and published tables: ends, spacing, random step counts; the search of times."""

from __future__ import annotations

import json
import random

import pytest
import torch

from dinit.diffusion import PROCESSES
from dinit.diffusion.continuous import EDM, GVP, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import GRIDS
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import Exponential, LogSNR, Polyexponential
from dinit.samplers.grids.published import ALIGNED, AlignYourSteps, VPInSigma
from dinit.samplers.grids.times import Times
from dinit.samplers.grids.uniform import Quadratic
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler
from dinit.samplers.search.timesteps import Evolution, search_timesteps

F64 = torch.float64
MORE = [Exponential(), Polyexponential(), Polyexponential(0.7), Quadratic(), VPInSigma()]
MORE += [AlignYourSteps(table) for table in ALIGNED]  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", MORE, ids=repr)
@pytest.mark.parametrize("process", PROCESSES.names())
def test_random_step_counts_keep_the_ends_and_decrease(grid, process: str) -> None:
    made, source = PROCESSES.create(process), random.Random(f"{grid}{process}")
    for t_max in (1.0, 0.999):
        for steps in [1, 2, 3, *source.sample(range(4, 300), 5)]:
            times = grid.times(made, steps, made.t_min, t_max)
            assert times.shape == (steps,)
            assert times.dtype == F64
            assert bool((times.diff() < 0).all())
            assert float(times[0]) == t_max
            assert steps < 3 or float(times[-1]) == made.t_min
            assert bool((made.scales(times).sigma > 0).all())


def test_spacing_by_hand() -> None:
    edm = EDM(0.01, 80.0)
    sigma = lambda grid, n: 80 * grid.times(edm, n, edm.t_min, 1.0)  # noqa: E731
    assert torch.allclose(sigma(Exponential(), 9), sigma(LogSNR(), 9))
    assert sigma(Exponential(), 9).log().diff().std() < 1e-12
    u = torch.arange(9, dtype=F64) / 8
    by_hand = ((80.0 / 0.01) ** ((1 - u) ** 1.3)) * 0.01
    assert torch.allclose(sigma(Polyexponential(1.3), 9), by_hand, rtol=1e-12)
    assert Quadratic().times(VP(), 20, 1e-3, 1.0).sqrt().diff().std() < 1e-12
    alpha = torch.exp(
        -torch.linspace(1, 1e-3, 7, dtype=F64).square() * 19.9 / 4 - torch.linspace(1, 1e-3, 7) * 0.05
    )
    assert torch.allclose(VPInSigma().noise_levels(7), (1 - alpha**2).sqrt() / alpha, rtol=1e-6)
    assert torch.allclose(VPInSigma().times(VP(), 7, 1e-3, 1.0), torch.linspace(1, 1e-3, 7, dtype=F64), atol=1e-9)


def test_published_tables_are_met_on_their_own_range() -> None:
    # By the sums of the published rows.
    assert {name: round(sum(table), 3) for name, table in ALIGNED.items()} == {
        "sd1.5": 33.125,
        "sdxl": 30.397,
        "svd": 785.993,
    }
    for name, table in ALIGNED.items():
        edm = EDM(table[-1], table[0])
        grid = AlignYourSteps(name)  # type: ignore[arg-type]
        assert torch.allclose(grid.noise_levels(11), torch.tensor(table, dtype=F64), rtol=1e-12)
        assert torch.allclose(table[0] * grid.times(edm, 11, edm.t_min, 1.0), grid.noise_levels(11), rtol=1e-10)
        # 21 levels: the table, and geometric means between.
        assert torch.allclose(grid.noise_levels(21)[::2], grid.noise_levels(11), rtol=1e-12)
        assert torch.allclose(
            grid.noise_levels(21)[1::2] ** 2, grid.noise_levels(11)[1:] * grid.noise_levels(11)[:-1], rtol=1e-10
        )
    chain = VPDiscrete("scaled-linear")
    levels = chain.scales(AlignYourSteps().times(chain, 11, chain.t_min, 1.0)).noise_level
    assert torch.allclose(levels, torch.tensor(ALIGNED["sd1.5"], dtype=F64), rtol=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Polyexponential(0.0), "rho must be positive"),
        (lambda: VPInSigma(beta_min=0.0), "beta_min > 0"),
        (lambda: AlignYourSteps("sd15"), "did you mean 'sd1.5'"),  # type: ignore[arg-type]
        (lambda: GRIDS.create("searched"), "needs a value for path"),
        (lambda: Evolution(population=4, parents=4), "parents < population"),
        (lambda: Evolution(mutation=0.0), "mutation must be"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- the search --------------------------------------------------------------------------------------------------


def searched(seed: int = 0, cache=None, process=None, steps: int = 5, calls: list | None = None) -> Times:
    exact = GaussianDenoiser(process or VP(), 0.3, 0.5, (1, 2, 2))
    noise = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    right = exact.flow(noise, 1.0, 0.0)

    def metric(samples: torch.Tensor) -> float:
        if calls is not None:
            calls.append(1)
        return float((samples - right).square().mean())

    evolution = Evolution(population=8, parents=3, generations=8, seed=seed)
    return search_timesteps(exact, Euler(), steps, metric, noise=noise, evolution=evolution, cache=cache)


def squared_error(grid, process, steps: int = 5) -> float:
    """On another noise than it was searched on."""
    exact = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2))
    noise = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    found = Euler().sample(exact, noise, steps, grid=grid)
    return float((found - exact.flow(noise, 1.0, 0.0)).square().mean())


@pytest.mark.parametrize("process", [VP(), LinearFlow(), GVP()], ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")  # bad candidates end noisy
def test_searched_times_are_better_than_every_grid(process) -> None:
    found = searched(process=process)
    assert len(found.values) == 5
    assert found.values[0] == 1.0
    assert squared_error(found, process) < 0.8 * min(
        squared_error(g, process) for g in ("uniform", "karras", LogSNR())
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_search_is_seeded_and_cached(tmp_path) -> None:
    cache, calls = tmp_path / "times.json", []
    found = searched(cache=cache, calls=calls)
    assert len(calls) == 8 + 8 * 5
    assert searched() == found
    assert searched(seed=1) != found
    assert searched(cache=cache, calls=calls) == found
    assert len(calls) == 48, "the second search ran nothing"
    exact, noise = GaussianDenoiser(VP(), 0.3, 0.5, (1, 2, 2)), torch.ones(1, 1, 2, 2, dtype=F64)
    by_name = DDIM().sample(exact, noise, grid=GRIDS.create("searched", path=str(cache)))
    assert torch.equal(by_name, DDIM().sample(exact, noise, grid=found))
    with pytest.raises(ValueError, match=r"another search \(other evolution\)"):
        searched(seed=2, cache=cache)
    with pytest.raises(ValueError, match="at least 3"):
        searched(steps=2)
    with pytest.raises(ValueError, match="has 5 times"):
        GRIDS.create("searched", path=str(cache)).times(VP(), 4, 1e-3, 1.0)
    cache.write_text(json.dumps({"values": []}))
    with pytest.raises(ValueError, match="no searched times"):
        _ = GRIDS.create("searched", path=str(cache)).length


def test_karras_differs_from_the_others() -> None:
    grids = [Karras(), *MORE]
    made = [g.times(VP(), 12, 1e-3, 1.0) for g in grids]
    assert len({tuple(t.tolist()) for t in made}) == len(made)
