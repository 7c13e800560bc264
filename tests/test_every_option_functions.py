"""Every keyword of the functions that run samplers, away from its default: it acts, to known numbers.

The keywords are read from the signatures, as the options of registered entries are in test_every_option.py; the
numbers are in fixtures/every_keyword.json, which `python tests/test_every_option_functions.py` writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_every_option import BATCH, FLOW, LABELS, NOISE, NOISY_DDIM, SHAPE, VP_PROCESS, condensed, mixture, randn
from torch import Tensor

from dinit.diffusion.continuous import EDM
from dinit.likelihood.bound import variational_bound
from dinit.likelihood.ode import Hutchinson, log_likelihood
from dinit.samplers import (
    DDIM,
    DDPM,
    EDICT,
    Evolution,
    NoiseSource,
    SolverSearch,
    compare,
    invert,
    search_timesteps,
)
from dinit.samplers.inversion.invert import ascend
from dinit.samplers.multistep.ode_variables import TIME
from dinit.samplers.search import solver
from dinit.samplers.search.fit import fit
from dinit.samplers.search.solver import mutated, starts

F64 = torch.float64
NUMBERS = Path(__file__).parent / "fixtures" / "every_keyword.json"
TIMES = torch.tensor([0.95, 0.6, 0.3, 0.1], dtype=F64)
STATE = 0.7 * randn(BATCH, *SHAPE, seed=5)
COUPLED = (STATE, STATE + 0.1)
OTHER_SOURCE = NoiseSource.from_seed(9, BATCH)
DATA = 0.5 * randn(BATCH, *SHAPE, seed=6)
PIXELS = ((DATA.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@dataclass(frozen=True)
class Function:
    """A function as it is called here, and other values of its keywords.

    call: takes keywords, gives what it returns. base: the keywords of a plain call. others: by keyword, a value or
    (value, further keywords). unlike: parameters that are no options.
    """

    signature: Callable[..., Any]
    call: Callable[..., Any]
    base: Mapping[str, Any]
    others: Mapping[str, Any]
    unlike: tuple[str, ...]
    result: Callable[[Any], list[Any]]


def sample(sampler: Any = NOISY_DDIM, **keywords: Any) -> Tensor:
    return sampler.sample(mixture(VP_PROCESS), NOISE, **keywords)


def iterated(sampler: Any = NOISY_DDIM, **keywords: Any) -> Any:
    return list(sampler.iterate(mixture(VP_PROCESS), NOISE, **keywords))


def carried(sampler: Any = DDIM(), **keywords: Any) -> Any:  # noqa: B008
    return invert(sampler, mixture(VP_PROCESS), DATA, **keywords)


def compared(**keywords: Any) -> Any:
    found = compare(mixture(VP_PROCESS), NOISE, keywords.pop("labels"), ["ddim:eta=0.5", "heun"], **keywords)
    return found.images


def metric(samples: Tensor) -> float:
    return float((samples - 0.3).square().mean())


def searched(noise: Tensor = NOISE, sampler: Any = NOISY_DDIM, **keywords: Any) -> Any:
    return search_timesteps(mixture(VP_PROCESS), sampler, metric=metric, noise=noise, **keywords)


def scored(**keywords: Any) -> Any:
    """The times, and the metric of every candidate."""
    scores: list[float] = []

    def kept(samples: Tensor) -> float:
        scores.append(metric(samples))
        return scores[-1]

    found = search_timesteps(mixture(VP_PROCESS), NOISY_DDIM, metric=kept, noise=NOISE, **keywords)
    return [list(found.values), scores]


def evolved(**options: Any) -> Any:
    return scored(steps=4, evolution=Evolution(**options))


def schedule_found(nfe: int = 3, labels: Any = None, **options: Any) -> Any:
    """Times, errors, what was bred and what was fitted, of a search that starts from few schedules."""
    bred: list[float] = []
    fitted: list[float] = []

    def kept(*arguments: Any) -> Any:
        child = mutated(*arguments)
        bred.extend([*child.times, *(rule.order for rule in child.rules)])
        return child

    def counted(*arguments: Any) -> Any:
        found = fit(*arguments)
        fitted.append(found[2])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "starts", lambda *of: starts(*of)[::23])
        patch.setattr(solver, "mutated", kept)
        patch.setattr(solver, "fit", counted)
        found = SolverSearch(**options).find(mixture(FLOW), nfe, NOISE, labels)
    return [list(found.grid.values), [found.error, found.start_error], bred, fitted]


def traced(**options: Any) -> Any:
    return log_likelihood(mixture(VP_PROCESS), DATA, 5, labels=LABELS, trace=Hutchinson(**options))


NOISY = {"initial_state": STATE, "noise_source": OTHER_SOURCE, "seed": 4}
RUN = {"steps": 6, "labels": [0, 1, 2], "grid": ("karras", {}), **NOISY}
LIKELIHOOD = {"steps": 3, "labels": LABELS}
BREEDING = {"population": 5, "parents": 3, "generations": 2}
FUNCTIONS = {
    "Sampler.sample": Function(
        DDIM.sample,
        sample,
        {"steps": 4, "labels": LABELS},
        {**RUN, "state": (COUPLED, {"sampler": EDICT()}), "end": ("state", {"grid": "log-snr"})},
        ("self", "denoiser", "initial_noise"),
        lambda x: [x],
    ),
    "Sampler.iterate": Function(
        DDIM.iterate,
        iterated,
        {"steps": 4, "labels": LABELS},
        {**RUN, "state": (COUPLED, {"sampler": EDICT()}), "end": ("state", {"grid": "log-snr"})},
        ("self", "denoiser", "initial_noise"),
        lambda steps: [torch.stack([torch.stack([s.x_t, s.x0, s.x_s]) for s in steps]), [s.t for s in steps]],
    ),
    "invert": Function(
        invert,
        carried,
        {"steps": 4, "labels": LABELS},
        {
            "steps": 6,
            "labels": [0, 1, 2],
            "grid": "karras",
            "state": (COUPLED, {"sampler": EDICT()}),
            "noise_source": (OTHER_SOURCE, {}),
            "seed": (4, {}),
        },
        ("sampler", "denoiser", "x"),
        lambda found: [found.x, found.nfe],
    ),
    "compare": Function(
        compare,
        compared,
        {"steps": 4, "labels": LABELS},
        {
            **{k: v for k, v in RUN.items() if k != "grid"},
            "grid": "karras",
            "nfe": (7, {"steps": None}),
            "end": ("state", {"grid": "log-snr"}),
        },
        ("denoiser", "noise", "samplers", "decode"),
        lambda images: [torch.stack(images)],
    ),
    "log_likelihood": Function(
        log_likelihood,
        lambda process=VP_PROCESS, **keywords: log_likelihood(mixture(process), DATA, **keywords),
        LIKELIHOOD,
        {
            "steps": 5,
            "labels": [0, 1, 2],
            "grid": (TIMES, {"steps": None}),
            "trace": [("exact", {"method": "euler"}), Hutchinson(probes=2)],
            "method": ["heun", "midpoint", "euler"],
            "variable": (TIME, {"grid": TIMES, "steps": None}),
            "prior": "standard",
            "bin_width": 1.0,
            "process": [FLOW, EDM()],
            "noise_source": OTHER_SOURCE,
            "seed": 4,
        },
        ("denoiser", "x"),
        lambda found: [found.log_prob, found.bits_per_dim, found.latent, found.nfe],
    ),
    "Hutchinson": Function(
        Hutchinson,
        traced,
        {},
        {"probe": "gaussian", "probes": 2, "fresh": [True, (True, {"probes": 2})]},
        (),
        lambda found: [found.log_prob],
    ),
    "variational_bound": Function(
        variational_bound,
        lambda process=VP_PROCESS, **keywords: variational_bound(mixture(process), PIXELS, **keywords),
        LIKELIHOOD,
        {
            "steps": 5,
            "labels": [0, 1, 2],
            "grid": (TIMES, {"steps": None}),
            "variance": ["fixed-large", "learned-range", "learned"],
            "process": [FLOW, EDM()],
            "noise_source": OTHER_SOURCE,
            "seed": 4,
        },
        ("denoiser", "x"),
        lambda found: [found.total, found.prior, found.terms, found.x0_mse, found.eps_mse],
    ),
    "search_timesteps": Function(
        search_timesteps,
        scored,
        {"steps": 4, "labels": LABELS, "evolution": Evolution(**BREEDING)},
        {
            "steps": 5,
            "labels": [0, 1, 2],
            "evolution": Evolution(6, 3, 2),
            **NOISY,
            "end": "state",
        },
        ("denoiser", "sampler", "metric", "noise", "cache"),
        list,
    ),
    "Evolution": Function(
        Evolution,
        evolved,
        BREEDING,
        {"population": 7, "parents": 2, "generations": 3, "mutation": 0.9, "seed": 1},
        (),
        list,
    ),
    "SolverSearch": Function(
        SolverSearch,
        schedule_found,
        {"population": 3, "generations": 1, "fit": 0, "fits": 1, "reference_steps": 6},
        {
            "population": 4,
            "generations": 2,
            "fit": 3,
            "fits": (2, {"fit": 1, "generations": 0, "population": 2}),
            "seed": 1,
            "reference_steps": 9,
        },
        ("cache",),
        list,
    ),
    "SolverSearch.find": Function(
        SolverSearch.find,
        schedule_found,
        {"population": 3, "generations": 1, "fit": 1, "fits": 1, "reference_steps": 6},
        {"nfe": 4, "labels": LABELS},
        ("self", "denoiser", "noise", "key"),
        list,
    ),
}

# Keywords that change nothing in these calls, with the reason.
ACTS_NOT = {
    "invert": ("noise_source", "seed"),  # what can be inverted draws nothing; the noise is a guidance's, as CADS's
}


def flat(found: list[Any]) -> Tensor:
    return torch.cat([torch.as_tensor(part, dtype=F64).flatten() for part in found])


def results(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """By keyword and value: what it gives, and what the same call gives without it."""
    function = FUNCTIONS[name]

    def run(**keywords: Any) -> Tensor:
        return flat(function.result(function.call(**{**function.base, **keywords})))

    plain = run()
    found = {"as it comes": (plain, plain)}
    for keyword, written in function.others.items():
        for i, other in enumerate(written if isinstance(written, list) and keyword != "labels" else [written]):
            value, beside = other if isinstance(other, tuple) and isinstance(other[-1], dict) else (other, {})
            before = run(**beside) if beside and "steps" not in beside else plain
            found[f"{keyword} {i}"] = run(**{**beside, keyword: value}), before
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # few steps end noisy
def test_it_changes_the_result_to_known_numbers(name: str) -> None:
    function = FUNCTIONS[name]
    assert function.others.keys() - {"process"} == inspect.signature(function.signature).parameters.keys() - set(
        function.unlike
    )
    known = json.loads(NUMBERS.read_text())[name]
    found = results(name)
    assert known.keys() == found.keys()
    for keyword, (after, before) in found.items():
        same = after.shape == before.shape and bool((after - before).abs().max() < 1e-6)
        assert same == (keyword.split()[0] in (*ACTS_NOT.get(name, ()), "as")), keyword
        assert condensed(after) == pytest.approx(known[keyword], rel=1e-6, abs=1e-8), keyword


def test_ascend_is_what_invert_runs() -> None:
    assert inspect.signature(ascend).parameters.keys() == inspect.signature(invert).parameters.keys()
    *_, last = ascend("ddim", mixture(VP_PROCESS), DATA, 4, labels=LABELS)
    assert torch.equal(last.x_s, carried(steps=4, labels=LABELS).x)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_cache_is_of_one_search_alone(tmp_path: Path) -> None:
    """Another value of any keyword but the cache itself is another search: it is refused, not answered."""
    base = {"steps": 4, "evolution": Evolution(3, 2, 0), "cache": tmp_path / "times.json"}
    searched(**base)
    assert searched(**base) == searched(**base)
    function = FUNCTIONS["search_timesteps"]
    others = {**function.others, "noise": 2 * NOISE, "sampler": DDPM()}
    for keyword, value in others.items():
        with pytest.raises(ValueError, match=f"another search.*{keyword}"):
            searched(**{**base, keyword: value})
    other = tmp_path / "other.json"
    searched(**{**base, "cache": other, "seed": 4})
    with pytest.raises(ValueError, match=r"another search.*seed"):
        searched(**{**base, "cache": other})


def test_a_searched_solver_is_cached_under_all_that_decides_it() -> None:
    search, denoiser = SolverSearch(), mixture(VP_PROCESS)
    asked: dict[str, Any] = {"denoiser": denoiser, "nfe": 4, "noise": NOISE, "labels": None, "key": "a"}
    digests = [search._digest(**asked)]
    for field in dataclasses.fields(SolverSearch):
        if field.name != "cache":
            digests.append(replace(search, **{field.name: getattr(search, field.name) + 1})._digest(**asked))
    for name, value in {
        "denoiser": mixture(FLOW),
        "nfe": 5,
        "noise": 2 * NOISE,
        "labels": LABELS,
        "key": "b",
    }.items():
        digests.append(search._digest(**{**asked, name: value}))
    for name in ("t_min", "t_max"):
        changed = mixture(VP_PROCESS)
        setattr(changed, name, 0.5)
        digests.append(search._digest(**{**asked, "denoiser": changed}))
    assert len(set(digests)) == len(digests)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory():
        numbers = {
            name: {k: [float(f"{v:.9g}") for v in condensed(x)] for k, (x, _) in results(name).items()}
            for name in FUNCTIONS
        }
        NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")
