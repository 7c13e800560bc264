"""Every option of every registered entry, away from its default: it acts, is recorded, replays, is handed on.

The options are read from the entries' signatures, so that a new one is tested on arrival: its other values are
known from its type (True and False, the words of a Literal), or one has to be written into `OTHER`.

What every entry gives, at its defaults and at each other value, is held as numbers in fixtures/every_option.json:
closed forms and orders of convergence leave free what any value does right. `python tests/test_every_option.py`
writes the file; a change of numbers that exist needs a reason in CHANGELOG.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from dinit.cli.options import CallFlags
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser, Denoised, WrappedDenoiser
from dinit.diffusion.continuous import EDM, VE, VP, LinearFlow
from dinit.inverse import POSTERIOR_SAMPLERS, Measurement, PosteriorGuidance
from dinit.models.analytic import MixtureDenoiser
from dinit.pipelines.call import Call, to_spec
from dinit.pipelines.generate import Pipeline
from dinit.registry import Registry
from dinit.samplers import DDIM, DDPM, GRIDS, SAMPLERS, EDMHeun, LogSNR, Sampler, Step, Uniform, invert
from dinit.samplers.guidance import CFG, GUIDANCES, SCHEDULES, apply_guidance
from dinit.samplers.multistep.rules import Corrector, Extrapolate, Pseudo, SingleStep
from dinit.samplers.multistep.unified import Unified
from dinit.samplers.ode.restart import Interval, Restart

F64 = torch.float64
SHAPE = (2, 3, 5)  # not square: an option that mixes up axes fails


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Learned(WrappedDenoiser):
    """A denoiser that says besides where the variance lies between its bounds."""

    learns_variance = True

    def __call__(self, x_t: Tensor, t: Any, cond: Any) -> Denoised:
        d = self.inner(x_t, t, cond)
        return replace(d, variance_fraction=0.5 + 0.4 * torch.tanh(x_t))


def mixture(process: Any, seed: int = 0) -> Learned:
    """Three components in two classes, and the null class; the second class has more than one."""
    means = torch.stack([torch.full(SHAPE, -0.3), torch.full(SHAPE, 0.1), torch.full(SHAPE, 0.5)]).double()
    means = means + 0.2 * randn(3, *SHAPE, seed=seed)
    variances = 0.05 + 0.1 * randn(3, *SHAPE, seed=seed + 1).square()
    return Learned(
        MixtureDenoiser(
            process,
            means,
            variances,
            weights=torch.tensor([1.0, 2.0, 3.0]),
            component_class=torch.tensor([0, 1, 1]),
        )
    )


# --- what an entry does, as one tensor ---

BATCH = 3
LABELS = torch.tensor([1, 0, 2])  # two classes, and the null class
NOISE = randn(BATCH, *SHAPE, seed=2)
VP_PROCESS, FLOW, NOISY_DDIM = VP(), LinearFlow(), DDIM(0.5)


def sampled(
    sampler: Sampler,
    process: Any = VP_PROCESS,
    steps: int | None = 6,
    grid: Any = None,
    end: Any = "posterior-mean",
):
    return sampler.sample(mixture(process), NOISE, steps, grid=grid, end=end, labels=LABELS, seed=3)


def onto_clean(sampler: Sampler) -> Tensor:
    """The state at t = 0."""
    return sampled(sampler, FLOW, None, torch.tensor([1.0, 0.7, 0.4, 0.0], dtype=F64), "state")


def unevenly(sampler: Sampler) -> Tensor:
    """A step much longer than the one before it."""
    return sampled(sampler, LinearFlow(), None, torch.tensor([0.95, 0.9, 0.85, 0.8, 0.3, 0.2], dtype=F64))


def freely(sampler: Sampler) -> Tensor:
    """Steps as an adaptive sampler chooses them: no grid time stops one."""
    return sampled(sampler, VP_PROCESS, None, torch.tensor([1.0, 0.1], dtype=F64))


def inverted(sampler: Sampler) -> Tensor:
    x = 0.5 * randn(BATCH, *SHAPE, seed=4)
    return invert(sampler, mixture(VP_PROCESS), x, 8, labels=LABELS, grid=LogSNR()).x


def placed(grid: Any, process: Any = VP_PROCESS, steps: int = 7) -> Tensor:
    return grid.times(process, steps, process.t_min, 1.0)


def guided(guidance: Any, sampler: Sampler = NOISY_DDIM) -> Tensor:
    denoiser = apply_guidance(mixture(FLOW), guidance)
    return sampler.sample(denoiser, NOISE, 6, labels=LABELS, seed=3)


class Spied(torch.nn.Module):
    """A network that answers with its input and its time."""

    num_classes, in_channels, out_channels = 2, SHAPE[0], SHAPE[0]

    def embed(self, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), 1)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        return torch.tanh(x) + noise_label.double().reshape(-1, 1, 1, 1).sin()


def through_a_network(parameterization: Any, process: Any) -> Tensor:
    denoiser = BackboneDenoiser(Spied(), process, parameterization)
    return DDIM().sample(denoiser, NOISE, 4)


def of_process(process: Any) -> Tensor:
    k = process.scales(torch.tensor([0.2, 0.55, 1.0], dtype=F64))
    own = [k.alpha, k.sigma, k.d_alpha, k.d_sigma, process.noise_label(k), process.prior_std(k)]
    numbers = torch.tensor([process.t_min, process.num_steps], dtype=F64)
    found = through_a_network(PARAMETERIZATIONS.create("v"), process)
    return torch.cat([found.flatten(), *own, process.time_of(torch.tensor([-1.0, 2.0], dtype=F64)), numbers])


def of_parameterization(parameterization: Any) -> Tensor:
    return through_a_network(parameterization, EDM())


def restored(part: Any, seen: Measurement | None = None) -> Tensor:
    """With a measurement: of a posterior guidance in a run, or of a posterior sampler."""
    if isinstance(part, PosteriorGuidance):
        return guided([replace(part, measurement=seen or SEEN)])
    sampler = replace(part, measurement=seen or SEEN)
    return sampler.sample(mixture(VP_PROCESS), NOISE, 6, labels=LABELS, seed=3)


def of_schedule(schedule: Any) -> Tensor:
    return guided(CFG(3.0, schedule=schedule))


SEEN = Measurement({"name": "random-projection", "rows": 8, "seed": 1}, randn(BATCH, 8, seed=5), 0.1)

UNEVEN = Measurement({"name": "matrix", "A": randn(8, math.prod(SHAPE), seed=6)}, randn(BATCH, 8, seed=5), 0.1)

# --- the other values ---


@dataclass(frozen=True)
class Other:
    """A value of an option away from its default, and what the option acts beside.

    with_: other options without which it does nothing. run: what shows it, in place of the kind's own.
    """

    value: Any
    with_: Mapping[str, Any] = field(default_factory=dict)
    run: Callable[[Any], Tensor] | None = None


def at(run: Callable[..., Tensor], **options: Any) -> Callable[[Any], Tensor]:
    return functools.partial(run, **options)


CHURN = {"s_churn": 3.0}
CHURNED = {
    "s_churn": 3.0,
    "s_tmin": Other(0.5, CHURN),
    "s_tmax": Other(2.0, CHURN),
    "s_noise": Other(1.1, CHURN),
}
TOLERANT = {"rtol": 0.01, "atol": 0.01}
WEAK = Learned(mixture(LinearFlow(), seed=7))
INTERVAL = {"low": -1.0, "high": -0.5}


def classify(x: Tensor, noise_label: Tensor) -> Tensor:
    return torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1) + noise_label[:, None] / 1000


def discriminate(x: Tensor, t: Any, labels: Tensor) -> Tensor:
    return x.sin().sum((1, 2, 3)) * (1 + labels)


def intervals(**options: Any) -> dict[str, Any]:
    return {name: Other(value, options) for name, value in INTERVAL.items()}


UNRESOLVED = Other(0.7, run=at(restored, seen=UNEVEN))  # singular values left out: from 0.42 to 1 of the largest


def uncorrected(value: str) -> Other:
    """A start of a run without a corrector, which would hide it."""
    return Other(value, {"schedule": (Extrapolate(),)})


OTHER: dict[str, dict[str, dict[str, Any]]] = {
    "sampler": {
        "ab": {"order": 2},
        "ancestral": {"eta": [0.5, 1.5, math.inf], "s_noise": 1.1},
        "bdia-ddim": {"gamma": 0.6},
        "bdia-edm": {"gamma": 0.6},
        "ddim": {"eta": 0.5},
        "ddim-inverse": {"iterations": Other(2, run=inverted)},
        "deis": {"order": 2},
        "dpm-2": CHURNED,
        "dpm-adaptive": {
            name: Other(value, {"first": 1.0} if name != "first" else {}, freely)
            for name, value in {
                "rtol": 0.2,
                "atol": 0.2,
                "first": 0.5,
                "proportional": 0.3,
                "integral": 0.7,
                "derivative": 0.1,
                "accept": 0.95,
            }.items()
        },
        "dpmpp-2m-sde": {"eta": 0.5, "s_noise": 1.1},
        "dpmpp-3m": {"max_step_ratio": Other(math.inf, run=unevenly)},
        "dpmpp-3m-sde": {"eta": 0.5, "s_noise": 1.1, "max_step_ratio": Other(math.inf, run=unevenly)},
        "dpmpp-sde": {"eta": 0.5, "s_noise": 1.1},
        "eab": {"order": 2, "max_step_ratio": Other(math.inf, run=unevenly)},
        "edict": {"mixing": 0.93},
        "edm-euler": {**CHURNED, "s_tmin": Other(2.0, CHURN)},
        "edm-heun": {**CHURNED, "alpha": 0.5},
        "er-sde": {"s_noise": 1.1},
        "euler-maruyama": {"eta": 0.5},
        "flow-sde": {
            "diffusion": [
                Other("constant"),
                Other("linear"),
                Other("decreasing"),
                Other("increasing-decreasing"),
                Other("sbdm", run=at(sampled, process=VP_PROCESS)),
            ],
            "norm": 0.5,
            "last_step": [
                Other("mean", run=at(sampled, process=FLOW, end=None)),
                Other("euler", run=onto_clean),
                Other("tweedie", run=onto_clean),
                Other("none", {"method": "euler-maruyama"}, onto_clean),
            ],
        },
        "lms": {"order": 2},
        "predictor-corrector": {
            "predictor": ["ddim", "none", DDIM(0.5), EDMHeun(1.5, alpha=0.5)],
            "snr": 0.1,
            "corrector_steps": 2,
        },
        "restart": {"s_noise": 1.1, "rho": 3.0, "intervals": (Interval(0.2, 0.9), Interval(0.1, 0.3, 4, 1))},
        "rk45": TOLERANT,
        "sa-solver": {"tau": 0.5, "low": -3.0, "high": -3.0, "predictor_order": 3, "corrector_order": [0, 1, 3]},
        "unified": {
            "schedule": (SingleStep("eps", (0.5,)), Extrapolate("v", 2), Pseudo("eps", 2)),
            "warm_up": uncorrected("lower-order"),
        },
        "unipc": {
            "order": 3,
            "uncorrected": (1, 2),
            "lower_order_final": Other(True, {"order": 3}),
            "warm_up": Other("lower-order", {"uncorrected": (0, 1)}),
        },
    },
    "rule of 'unified'": {
        "extrapolate": {
            "order": [2, Other(2, {"start_steps_back": 2})],
            "corrector": [Corrector(), Corrector("bh1", start_only=True)],
            "start_steps_back": [1, 2],
            "max_step_ratio": Other(1.5, run=unevenly),
            "difference_weights": (0.9, 0.5),
        },
        "single-step": {"stages": (1 / 3, 2 / 3)},
        "pseudo": {
            "order": 2,
            "corrector": Corrector(),
            "start_steps_back": [1, 2],
            "max_step_ratio": Other(1.5, run=unevenly),
        },
        "corrector": {},
    },
    "interval of 'restart'": {"interval": {"low": 0.3, "high": 0.8, "steps": 5, "repeats": 1}},
    "grid": {
        "karras": {"rho": 5.0, "first": Other(0.99, run=at(placed, process=FLOW))},
        "log-snr": {"first": Other(0.99, run=at(placed, process=FLOW))},
        "polyexponential": {"rho": 0.7},
        "respaced": {
            "sections": [
                Other("4,3"),
                Other("ddim10", run=at(placed, steps=10)),
            ]
        },
        "searched": {"path": Other("times.json", run=at(placed, steps=3))},
        "shifted": {"shift": 2.0, "first": 0.98},
        "times": {"values": Other((0.9, 0.5, 0.1), run=at(placed, steps=3))},
        "timesteps": {"offset": Other(1, {"spacing": "leading"})},
        "uniform": {"last": 0.2},
        "vp": {"beta_d": 12.0, "beta_min": 0.3, "eps": 0.01},
    },
    "guidance": {
        "apg": {
            "scale": 3.0,
            "eta": 0.5,
            "radius": 1.0,
            "momentum": -0.5,
            **INTERVAL,
        },
        "autoguidance": {"scale": Other(3.0, {"weak": WEAK}), "weak": WEAK, **intervals(weak=WEAK)},
        "cads": {"tau1": 0.4, "tau2": 0.8, "scale": 0.5, "mixing": 0.5},
        "cfg": {
            "scale": 3.0,
            **INTERVAL,
            "rescale": 0.7,
            "channels": 1,
            "schedule": ["linear", {"name": "cosine", "first": 0.2}, SCHEDULES.create("log-snr", low=-3.0)],
        },
        "cfg++": {"scale": 0.3, **INTERVAL},
        "cfg-zero*": {"scale": 3.0, "zero_steps": 1},
        "classifier": {
            "scale": Other(3.0, {"classifier": classify}),
            "classifier": classify,
            "form": Other("mean", {"classifier": classify}, at(guided, sampler=DDPM())),
            "unconditional": Other(True, {"classifier": classify}),
            "label": Other(1, {"classifier": classify}),
            **intervals(classifier=classify),
        },
        "clip-x0": {"limit": 0.5, "low": -0.2, "high": 0.3},
        "compose": {"classes": (1,), "weights": (0.5,), "weight": 0.3},
        "discriminator": {
            "scale": Other(3.0, {"discriminator": discriminate}),
            "discriminator": discriminate,
            **intervals(discriminator=discriminate),
        },
        "dynamic-threshold": {"percentile": 0.8, "limit": 0.5, "largest": Other(0.7, {"limit": 0.5})},
        "negative": {"scale": 3.0, "label": 1, **INTERVAL},
        "noise-damped": {"scale": 3.0, "base": WEAK, "max_log_snr": Other(0.0, {"base": WEAK})},
    },
    "posterior guidance": {
        "ddnm": {"rtol": UNRESOLVED},
        "ddnm+": {"rtol": UNRESOLVED},
        "diffpir": {"lam": 3.0, "rtol": UNRESOLVED},
        "dps": {"zeta": 0.3, "steps": 20},
        "mmps": {"iterations": 2},
        "pigdm": {
            "data_std": 0.3,
            "line_search": Other(False, {"data_std": 0.3}),
            "steps": Other(20, {"adaptive": True}),
        },
        "stsl": {"zeta": 0.3, "eta": 0.5, "steps": 20},
    },
    "posterior sampler": {
        "daps": {"ode_steps": 2, "langevin_steps": 7, "step_size": 0.02},
        "ddrm": {"rtol": UNRESOLVED, "eta": 0.5, "eta_b": 0.5},
        "mcmc": {"iterations": 3, "step_size": 0.02},
        "red-diff": {"rtol": UNRESOLVED, "weight": 0.1, "lr": 0.03},
        "repaint": {"solver": "ddim", "resamples": 2, "jump_length": 2},
        "replace": {"solver": "ddim", "resamples": 2},
        "tds": {
            "particles": 3,
            "threshold": Other(0.2, {"covariance": "jacobian"}),
            "iterations": Other(2, {"covariance": "jacobian"}),
        },
    },
    "guidance schedule": {
        "cosine": {"first": 0.5, "last": 0.5},
        "linear": {"first": 0.5, "last": 0.5},
        "log-snr": {"low": -3.0, "high": 2.0, "first": 0.5, "last": 0.5},
        "power-cosine": {"power": 2.0, "num_steps": 10},
    },
    "process": {
        "edm": {"sigma_min": 0.01, "sigma_max": 20.0},
        "flow": {"shift": 3.0},
        "sub-vp": {"beta_min": 0.3, "beta_max": 15.0},
        "ve": {"sigma_min": 0.02, "sigma_max": 20.0},
        "ve-discrete": {"sigma_min": 0.02, "sigma_max": 20.0, "num_steps": 100},
        "vp": {"beta_min": 0.3, "beta_max": 15.0},
        "vp-betas": {"betas": tuple(0.01 + 0.002 * i for i in range(40))},
        "vp-discrete": {"num_steps": 100, "beta_start": 0.001, "beta_end": 0.01},
    },
    "parameterization": {"edm": {"sigma_data": 1.0}},
}

# --- the kinds of entries ---


@dataclass(frozen=True)
class Kind:
    """A registry, or a part that an entry is made of.

    entries: what makes each. place: the part of a call or a pipeline that it belongs to. whole: what stands there.
    run: what shows that two of them differ. needs: by entry, options without a default.
    """

    entries: Mapping[str, Callable[..., Any]]
    run: Callable[[Any], Tensor]
    place: Literal["sampler", "grid", "guidance", "process", "parameterization"]
    whole: Callable[[Any], Any] = lambda made: made
    needs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def unified(rule: Any) -> Unified:
    return Unified((Extrapolate(corrector=rule),) if isinstance(rule, Corrector) else (rule,))


def entries(registry: Registry[Any]) -> dict[str, Any]:
    return {name: registry[name] for name in registry}


RULES: dict[str, Any] = {
    "extrapolate": Extrapolate, "single-step": SingleStep, "pseudo": Pseudo, "corrector": Corrector
}  # fmt: skip
KINDS = {
    "sampler": Kind(entries(SAMPLERS), sampled, "sampler"),
    "rule of 'unified'": Kind(
        RULES,
        sampled,
        "sampler",
        unified,
        {"single-step": {"prediction": "x0", "stages": (0.5,)}},
    ),
    "interval of 'restart'": Kind(
        {"interval": Interval},
        at(sampled, steps=10),
        "sampler",
        lambda one: Restart((one,)),
        {"interval": {"low": 0.2, "high": 0.6}},
    ),
    "grid": Kind(
        entries(GRIDS),
        placed,
        "grid",
        needs={"times": {"values": (0.9, 0.4, 0.2)}, "searched": {"path": "other.json"}},
    ),
    # Guidance by a measurement does nothing without one, and is a kind of its own.
    "guidance": Kind(
        {name: one for name, one in entries(GUIDANCES).items() if not issubclass(one, PosteriorGuidance)},
        guided,
        "guidance",
    ),
    "posterior guidance": Kind(
        {name: one for name, one in entries(GUIDANCES).items() if issubclass(one, PosteriorGuidance)},
        restored,
        "guidance",
    ),
    "posterior sampler": Kind(entries(POSTERIOR_SAMPLERS), restored, "sampler"),
    "guidance schedule": Kind(entries(SCHEDULES), guided, "guidance", lambda made: CFG(3.0, schedule=made)),
    "process": Kind(entries(PROCESSES), of_process, "process"),
    "parameterization": Kind(entries(PARAMETERIZATIONS), of_parameterization, "parameterization"),
}

# Kinds whose entries take SEEN; their numbers are held by closed forms, in tests/inverse.
MEASURED = ("posterior guidance", "posterior sampler")

# Options whose value is a model, which no file says: a call that has one is recorded and not replayed.
MODELS = {
    ("guidance", "autoguidance", "weak"),
    ("guidance", "classifier", "classifier"),
    ("guidance", "discriminator", "discriminator"),
    ("guidance", "noise-damped", "base"),
}


@dataclass(frozen=True)
class Case:
    kind: str
    entry: str
    option: str
    value: Any
    with_: Mapping[str, Any] = field(default_factory=dict)
    run: Callable[[Any], Tensor] | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.entry}({self.option}={self.value!r})"

    @property
    def name(self) -> str:
        """The option and its value, in the file of numbers."""
        value = "a model" if self.of_a_model else repr(self.value)
        beside = [k if (self.kind, self.entry, k) in MODELS else f"{k}={v!r}" for k, v in self.with_.items()]
        shown = f"{self.option}={value if len(value) < 60 else value[:57] + '...'}"
        return f"{shown} with {', '.join(beside)}" if beside else shown

    @property
    def of_a_model(self) -> bool:
        return (self.kind, self.entry, self.option) in MODELS

    def made(self, *, changed: bool = True, models: bool = True) -> Any:
        """The sampler, grid, guidance, process or parameterization with the option changed, or as it was."""
        kind = KINDS[self.kind]
        beside = {k: v for k, v in self.with_.items() if models or (self.kind, self.entry, k) not in MODELS}
        options = {**kind.needs.get(self.entry, {}), **beside, **({self.option: self.value} if changed else {})}
        return kind.whole(kind.entries[self.entry](**options))

    def result(self, made: Any) -> Tensor:
        return (self.run or KINDS[self.kind].run)(made)


def options_of(kind: str, entry: str) -> dict[str, tuple[Any, Any]]:
    """(type, default) of each option."""
    made_by = KINDS[kind].entries[entry]
    hints = get_type_hints(made_by)
    parameters = inspect.signature(made_by).parameters
    options = {name: (hints[name], p.default) for name, p in parameters.items()}
    return options if kind not in MEASURED else {k: v for k, v in options.items() if k != "measurement"}


def of_type(hint: Any, default: Any) -> list[Any]:
    """All other values of an option that has few; none where its type does not say them."""
    if hint is bool:
        return [not default]
    return [value for value in get_args(hint) if value != default] if get_origin(hint) is Literal else []


def cases_of(kind: str, entry: str) -> Iterator[Case]:
    table = OTHER[kind].get(entry, {})
    for option, (hint, default) in options_of(kind, entry).items():
        needed = KINDS[kind].needs.get(entry, {})
        written = table.get(option, [])
        values = written if isinstance(written, list) else [written]
        others = [one if isinstance(one, Other) else Other(one) for one in values]
        known = [other.value for other in others]
        others += [Other(v) for v in of_type(hint, needed.get(option, default)) if v not in known]
        yield from (Case(kind, entry, option, other.value, other.with_, other.run) for other in others)


CASES = [case for kind in KINDS for entry in KINDS[kind].entries for case in cases_of(kind, entry)]


def test_every_option_has_another_value() -> None:
    """A new option without one fails here: write it into `OTHER`."""
    options = {(kind, e, o) for kind in KINDS for e in KINDS[kind].entries for o in options_of(kind, e)}
    tried = {(case.kind, case.entry, case.option) for case in CASES}
    assert options - tried == set()
    written = {(kind, e, o) for kind, table in OTHER.items() for e, options in table.items() for o in options}
    assert written - options == set(), "OTHER names options that there are not"
    for case in CASES:
        assert repr(case.made()) != repr(case.made(changed=False)), f"{case} is the default"


def test_options_made_of_options_are_kinds_of_their_own() -> None:
    """A default that holds a dataclass has options inside, which are tested as well."""
    inside = set()
    for registry in (SAMPLERS, GRIDS, GUIDANCES, SCHEDULES, PROCESSES, PARAMETERIZATIONS):
        for name in registry:
            entry: Any = registry[name]
            for field_ in dataclasses.fields(entry):
                default = field_.default
                parts = default if isinstance(default, tuple) else (default,)
                if any(dataclasses.is_dataclass(p) for p in parts):
                    inside.add((name, field_.name))
    assert inside == {("unified", "schedule"), ("restart", "intervals")}


@pytest.fixture(autouse=True)
def searched_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the grid 'searched' reads here."""
    monkeypatch.chdir(tmp_path)
    write_searched_times()


def write_searched_times() -> None:
    """Into the current folder."""
    Path("times.json").write_text(json.dumps({"times": [0.9, 0.5, 0.1]}))
    Path("other.json").write_text(json.dumps({"times": [0.9, 0.4, 0.2]}))


def each(cases: list[Case]) -> Any:
    """One test an entry: its cases, so that their number stays readable."""
    by_entry: dict[str, list[Case]] = {}
    for case in cases:
        by_entry.setdefault(f"{case.kind} {case.entry}", []).append(case)
    return pytest.mark.parametrize("cases", by_entry.values(), ids=by_entry.keys())


def at_defaults(kind: str, entry: str) -> Any:
    """The entry as it comes, and guided by nothing where it needs a model."""
    models = {kind_entry[:2] for kind_entry in MODELS}
    needed = KINDS[kind].needs.get(entry, {})
    unguided = (kind, entry) in models and entry != "noise-damped"
    return () if unguided else KINDS[kind].whole(KINDS[kind].entries[entry](**needed))


@torch.no_grad()
def results(kind: str, entry: str) -> tuple[dict[str, Tensor], dict[str, bool]]:
    """What the entry gives at its defaults and at each other value, and whether the value changes it."""
    run = at(placed, steps=3) if entry in KINDS[kind].needs and kind == "grid" else KINDS[kind].run
    found, changes = {"as it comes": run(at_defaults(kind, entry))}, {}
    before: dict[Any, Tensor] = {}
    for case in cases_of(kind, entry):
        made = () if case.of_a_model else case.made(changed=False)
        if (key := (repr(made), case.run)) not in before:
            before[key] = case.result(made)
        after = case.result(case.made())
        found[case.name] = after
        changes[case.name] = before[key].shape != after.shape or bool((before[key] - after).abs().max() > 1e-6)
    return found, changes


ELSEWHERE: dict[str, dict[str, Callable[[Any], Tensor]]] = {
    "sampler": {
        "from alpha = 0": at(sampled, process=FLOW),
        "where alpha is 1": at(sampled, process=VE()),
        "onto sigma = 0": onto_clean,
    },
    "guidance": {
        "inside CFG": lambda made: guided([made, CFG(3.0)] if made else []),
        "around CFG": lambda made: guided([CFG(3.0), made] if made else []),
    },
    "grid": {"from alpha = 0": at(placed, process=FLOW), "where alpha is 1": at(placed, process=VE())},
}


@torch.no_grad()
def results_of_pairs(kind: str, entry: str) -> dict[str, Tensor | None]:
    """What every two options give together, one of which chooses a way, and an entry at its defaults elsewhere.

    None where it is refused.
    """
    found: dict[str, Tensor | None] = {}
    for name, run in ELSEWHERE[kind].items() if kind in ELSEWHERE and entry not in KINDS[kind].needs else ():
        try:
            found[name] = run(at_defaults(kind, entry))
        except ValueError:
            found[name] = None
    for one, other in combinations(cases_of(kind, entry), 2):
        if one.option == other.option or not any(isinstance(c.value, str | bool) for c in (one, other)):
            continue
        beside = {**one.with_, **other.with_, other.option: other.value}
        both = replace(one, with_=beside, run=one.run or other.run)
        try:
            found[f"{one.name}, {other.name}"] = both.result(both.made())
        except ValueError:
            found[f"{one.name}, {other.name}"] = None
    return found


def condensed(x: Tensor) -> list[float]:
    """Two sums that every element takes part in, with a weight of its own."""
    places = torch.arange(x.numel(), dtype=F64)
    return [float((x.flatten() * weight).mean()) for weight in ((1.7 * places).cos() + 1.5, (0.9 * places).sin())]


NUMBERS = Path(__file__).parent / "fixtures" / "every_option.json"
ENTRIES = [(kind, entry) for kind in KINDS for entry in KINDS[kind].entries]


@pytest.mark.parametrize(("kind", "entry"), ENTRIES, ids=[f"{kind} {entry}" for kind, entry in ENTRIES])
def test_it_changes_the_result_to_known_numbers(kind: str, entry: str) -> None:
    found, changes = results(kind, entry)
    assert changes == dict.fromkeys(changes, True)
    known = json.loads(NUMBERS.read_text()).get(kind, {}).get(entry, {})
    if kind in MEASURED:
        assert all(bool(x.isfinite().all()) for x in found.values())
        return
    assert known.keys() == found.keys(), "write the numbers of new options: python tests/test_every_option.py"
    for name, x in found.items():
        assert bool(x.isfinite().all()), name
        # Six digits: what another processor's last bit becomes over a run is a thousandth of that.
        assert condensed(x) == pytest.approx(known[name], rel=1e-6, abs=1e-8), name


PAIRED = [(kind, entry) for kind, entry in ENTRIES if kind in ("sampler", "grid", "guidance", "process")]


@pytest.mark.parametrize(("kind", "entry"), PAIRED, ids=[f"{kind} {entry}" for kind, entry in PAIRED])
def test_two_options_together_give_known_numbers(kind: str, entry: str) -> None:
    """A way of the sampler with another option at its default agrees with more faults than with both changed."""
    found, known = results_of_pairs(kind, entry), json.loads(NUMBERS.read_text())["two options"][f"{kind} {entry}"]
    assert known.keys() == found.keys(), "write the numbers of new options: python tests/test_every_option.py"
    for name, x in found.items():
        assert (x is None) == (known[name] is None), f"refused or not: {name}"
        if x is not None:
            assert condensed(x) == pytest.approx(known[name], rel=1e-6, abs=1e-8), name


def replayed(case: Case, made: Any) -> Any:
    """What the record in a file makes again."""
    place = KINDS[case.kind].place
    if place in ("process", "parameterization"):
        registry: Any = PROCESSES if place == "process" else PARAMETERIZATIONS
        return registry.create(json.loads(json.dumps(made.to_config())))
    call = call_with(place, made)
    again = Call.from_config(json.loads(json.dumps(call.to_config())))
    assert again == call, case
    assert again.to_config() == call.to_config(), case
    found = getattr(again, place)
    return found[0] if place == "guidance" else found


def call_with(place: str, made: Any) -> Call:
    parts: dict[str, Any] = {"sampler": DDIM(), "grid": Uniform(), "guidance": ()}
    parts[place] = (made,) if place == "guidance" else made
    end = parts["sampler"].end_for(FLOW)
    return Call(labels=(1, None), keys=((3, 0), (3, 1)), steps=7, batch_size=5, end=end, **parts)


RECORDED = [case for case in CASES if not case.of_a_model]


@each(RECORDED)
@torch.no_grad()
def test_it_is_recorded_and_replays(cases: list[Case]) -> None:
    for case in cases:
        made = case.made(models=False)
        again = replayed(case, made)
        assert type(again) is type(made), case
        assert again == made, case
        assert again != case.made(models=False, changed=False), case
    models = {k: v for k, v in case.with_.items() if (case.kind, case.entry, k) in MODELS}
    again = replace(again, **models) if models else again
    assert torch.equal(case.result(again), case.result(case.made())), case


def test_a_model_is_recorded_and_not_replayed() -> None:
    for case in CASES:
        if case.of_a_model:
            config = call_with("guidance", case.made()).to_config()
            assert config["guidance"][0][case.option] == repr(case.value)
            with pytest.raises(ValueError, match="must"):
                Call.from_config(config)


# --- handed on ---


def spec_text(made: Any) -> str:
    """NAME:KEY=VALUE,... as commands take it, all options of it."""
    spec = to_spec(made)
    given = [f"{key}={json.dumps(value)}" for key, value in spec.items() if key != "name"]
    return ":".join([spec["name"], ",".join(given)]) if given else spec["name"]


@functools.cache
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained("digits-dit")


# A posterior sampler is given as --method, which tests/cli covers.
KINDS_OF_A_CALL = [
    name
    for name, kind in KINDS.items()
    if kind.place in ("sampler", "grid", "guidance") and name != "posterior sampler"
]


class Reached(Exception):
    """Raised by the spies: nothing is to be run."""


@each([case for case in RECORDED if case.kind in KINDS_OF_A_CALL])
def test_it_reaches_the_sampler_from_the_command_line(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    reached: dict[str, Any] = {}

    def iterate(
        self: Sampler, denoiser: Any, noise: Tensor, steps: int, *, grid: Any, **rest: Any
    ) -> Iterator[Step]:
        reached.update(sampler=self, grid=grid, steps=steps)
        raise Reached

    monkeypatch.setattr(Sampler, "iterate", iterate)
    for case in cases:
        place, made = KINDS[case.kind].place, case.made(models=False)
        with monkeypatch.context() as patch:
            if place == "guidance":
                patch.setattr(type(made), "wrap", lambda self, denoiser: reached.update(guidance=self) or denoiser)
            flags: dict[str, Any] = {place: [spec_text(made)] if place == "guidance" else spec_text(made)}
            options = CallFlags(steps=getattr(made, "length", None) or 4, **flags).options()
            with pytest.raises(Reached):
                pipeline()([1, 2], **options)
        assert reached[place] == made, case


@each([case for case in CASES if KINDS[case.kind].place in ("process", "parameterization")])
def test_it_reaches_the_network_from_a_saved_pipeline(cases: list[Case], tmp_path: Path) -> None:
    for case in cases:
        place, made = KINDS[case.kind].place, case.made()
        parts = {"process": EDM(), "parameterization": PARAMETERIZATIONS.create("v"), place: made}
        Pipeline(pipeline().backbone, **parts).save_pretrained(tmp_path / "saved")
        again = Pipeline.from_pretrained(tmp_path / "saved").denoiser()
        assert getattr(again, place) == made, case


def written_numbers() -> dict[str, Any]:
    def short(found: Mapping[str, Tensor | None]) -> dict[str, Any]:
        return {n: None if x is None else [float(f"{v:.9g}") for v in condensed(x)] for n, x in found.items()}

    numbers: dict[str, Any] = {}
    for kind, entry in [one for one in ENTRIES if one[0] not in MEASURED]:
        numbers.setdefault(kind, {})[entry] = short(results(kind, entry)[0])
    numbers["two options"] = {f"{kind} {entry}": short(results_of_pairs(kind, entry)) for kind, entry in PAIRED}
    return numbers


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_searched_times()
        NUMBERS.write_text(json.dumps(written_numbers(), indent=1) + "\n")
