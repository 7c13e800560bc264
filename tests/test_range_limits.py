"""Options at the limits of their documented ranges: the limit itself is accepted, what lies beyond is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.diffusion.parameterization import check_pair
from dinit.likelihood.ode import Hutchinson
from dinit.samplers import GRIDS, SAMPLERS
from dinit.samplers.guidance import GUIDANCES
from dinit.samplers.points import checked_steps

TINY = 1e-300
FLOW, V = PROCESSES.create("flow"), PARAMETERIZATIONS.create("v")


def of(registry: Any, name: str, option: str, **others: Any) -> Callable[[Any], Any]:
    return lambda value: registry.create(name, **{option: value}, **others)


# What is made, values at its limits, values beyond them.
LIMITS: dict[str, tuple[Callable[[Any], Any], list[Any], list[Any]]] = {
    "vp beta_max": (of(PROCESSES, "vp", "beta_max", beta_min=1.0), [1.0], [0.999]),
    "sub-vp beta_max": (of(PROCESSES, "sub-vp", "beta_max", beta_min=1.0), [1.0], [0.999]),
    "vp beta_min": (of(PROCESSES, "vp", "beta_min"), [TINY], [0.0]),
    "ve sigma_max": (of(PROCESSES, "ve", "sigma_max", sigma_min=1.0), [1.001], [1.0]),
    "edm sigma_max": (of(PROCESSES, "edm", "sigma_max", sigma_min=1.0), [1.001], [1.0]),
    "edm sigma_min": (of(PROCESSES, "edm", "sigma_min"), [TINY], [0.0]),
    "flow shift": (of(PROCESSES, "flow", "shift"), [TINY], [0.0]),
    "vp-discrete num_steps": (of(PROCESSES, "vp-discrete", "num_steps", schedule="cosine"), [1], [0]),
    "vp-discrete without signal": (
        of(PROCESSES, "vp-discrete", "num_steps", schedule="cosine", zero_terminal_snr=True),
        [2],
        [1],
    ),
    "vp-betas": (of(PROCESSES, "vp-betas", "betas"), [(0.1, 0.2), (TINY, 0.999)], [(0.1,), (0.0, 0.1), (0.1, 1.0)]),
    "vp-betas without signal": (
        of(PROCESSES, "vp-betas", "betas", zero_terminal_snr=True),
        [(0.1, 1.0)],
        [(1.0, 0.1)],
    ),
    "ve-discrete num_steps": (of(PROCESSES, "ve-discrete", "num_steps"), [2], [1]),
    "edm sigma_data": (of(PARAMETERIZATIONS, "edm", "sigma_data"), [TINY], [0.0]),
    "t_max": (lambda t_max: check_pair(FLOW, V, t_max), [TINY, 1.0], [0.0, 1.0001]),
    "steps": (checked_steps, [1], [0, True, 1.0]),
    "ddim eta": (of(SAMPLERS, "ddim", "eta"), [0.0, 1.0], [-0.001, 1.001]),
    "ancestral eta": (of(SAMPLERS, "ancestral", "eta"), [0.0, math.inf], [-0.001, math.nan]),
    "ancestral s_noise": (of(SAMPLERS, "ancestral", "s_noise"), [TINY], [0.0]),
    "flow-sde norm": (of(SAMPLERS, "flow-sde", "norm"), [0.0], [-0.001]),
    "rk45 rtol": (of(SAMPLERS, "rk45", "rtol"), [TINY], [0.0]),
    "rk45 atol": (of(SAMPLERS, "rk45", "atol"), [TINY], [0.0]),
    "unipc order": (of(SAMPLERS, "unipc", "order"), [1, 4], [0, 5]),
    "ab order": (of(SAMPLERS, "ab", "order"), [1, 4], [0, 5]),
    "lms order": (of(SAMPLERS, "lms", "order"), [1, 4], [0, 5]),
    "ddim-inverse iterations": (of(SAMPLERS, "ddim-inverse", "iterations"), [0], [-1]),
    "bdia-ddim gamma": (of(SAMPLERS, "bdia-ddim", "gamma"), [TINY, 1.0], [0.0, 1.001]),
    "edict mixing": (of(SAMPLERS, "edict", "mixing"), [TINY, 1.0], [0.0, 1.001]),
    "karras rho": (of(GRIDS, "karras", "rho"), [TINY], [0.0]),
    "polyexponential rho": (of(GRIDS, "polyexponential", "rho"), [TINY], [0.0]),
    "cfg scale": (of(GUIDANCES, "cfg", "scale"), [0.0], [-0.001, math.inf]),
    "cfg rescale": (of(GUIDANCES, "cfg", "rescale"), [0.0, 1.0], [-0.001, 1.001]),
    "cfg channels": (of(GUIDANCES, "cfg", "channels"), [1, None], [0]),
    "cfg high": (of(GUIDANCES, "cfg", "high", low=1.0), [1.001], [1.0]),
    "probes": (lambda probes: Hutchinson(probes=probes), [1], [0, True]),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_is_accepted_and_what_lies_beyond_it_refused(name: str) -> None:
    make, accepted, refused = LIMITS[name]
    for value in accepted:
        make(value)
    for value in refused:
        with pytest.raises(ValueError):  # noqa: PT011 (the messages are tested with each class)
            make(value)
