"""Options of samplers under the names that they had before: files and calls that use them still read."""

from __future__ import annotations

import pytest
import torch

from dinit.diffusion.continuous import VP
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers.base import SAMPLERS
from dinit.samplers.search.solver import Found

RENAMED = [
    (name, old, new) for name in SAMPLERS for old, new in getattr(SAMPLERS[name], "renamed_options", {}).items()
]


def test_every_multistep_sampler_with_an_order_reads_levels() -> None:
    assert {name for name, old, new in RENAMED if (old, new) == ("levels", "order")} == {
        "ab", "deis", "dpmpp-2m", "dpmpp-2m-sde", "eab", "er-sde", "lms", "unipc",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), RENAMED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_name_means_the_new_one(name: str, old: str, new: str) -> None:
    value = {"order": 1, "max_step_ratio": 1.5}[new]
    assert SAMPLERS.create({"name": name, old: value}) == SAMPLERS.create({"name": name, new: value})
    assert SAMPLERS.create({"name": name, old: value}) != SAMPLERS.create(name)


# Rules as flat mappings, which files had before rules were types, and where their runs led then.
FLAT: list[tuple[list[dict], str, list[float]]] = [
    ([{}], "corrected", [1.0818441612479424, -0.4784448183755509, -1.2855227772138962, 0.9920363507797945]),
    (
        [{"prediction": "eps", "order": 4, "variable": "t", "variant": "pseudo", "corrector": False}],
        "lower-order",
        [0.6797985034605233, -0.24473614089021978, -0.7983802615495134, 0.6792211816498024],
    ),
    (
        [{"prediction": "eps", "order": 3, "variable": "t", "variant": "pseudo", "corrector": True, "reach": 1.2}],
        "corrected",
        [0.6931847031452059, -0.2516859661905705, -0.6592753123626296, 0.6281555632975727],
    ),
    (
        [
            {"prediction": "x0", "stages": [0.3333333333333333, 0.6666666666666666]},
            {"prediction": "v", "order": 3, "corrector": False},
        ],
        "single-step",
        [0.6118173643437022, -0.20906093046371213, -0.736539164423974, 0.6160159772894402],
    ),
    (
        [{"prediction": "velocity", "order": 4, "corrector": False, "variable": "own"}],
        "single-step",
        [0.6867476663536579, -0.24921853698444876, -0.8499567713897906, 0.6942917529506977],
    ),
    (
        [
            {"prediction": "x0", "order": 2, "corrector": False, "variant": "bh1", "corrector_variant": "bh1"},
            {"order": 1, "corrector": False},
            {"order": 2, "corrector": False, "span": 2, "variant": "midpoint"},
            {"order": 2, "corrector": False, "span": 3},
        ],
        "corrected",
        [0.7847665870879179, -0.30617895111222854, -1.0258177620957354, 0.8044878431510216],
    ),
    (
        [{"prediction": "path-velocity", "order": 3, "variable": "t", "differences": [1.5, -0.25], "reach": 1.05}],
        "corrected",
        [0.6969045090833792, -0.2882910709387066, -0.7568703921077663, 0.6400305196068184],
    ),
    (
        [
            {"prediction": "eps", "variant": "midpoint", "stages": [0.5], "variable": "own"},
            {"prediction": "x0", "order": 3, "variant": "taylor", "corrector_variant": "midpoint"},
        ],
        "lower-order",
        [1.001061303168681, -0.4315443545557866, -1.202600113149228, 0.9358588315023675],
    ),
]


@pytest.mark.parametrize(("schedule", "warm_up", "end"), FLAT)
def test_flat_rules_replay(schedule: list[dict], warm_up: str, end: list[float]) -> None:
    means = torch.tensor([[-0.6, 0.5], [0.6, -0.2]], dtype=torch.float64).reshape(2, 1, 1, 2)
    model = MixtureDenoiser(VP(), means, torch.full_like(means, 0.05))
    x = torch.tensor([[0.7, -0.4], [-1.1, 0.9]], dtype=torch.float64).reshape(2, 1, 1, 2)
    sampler = SAMPLERS.create({"name": "unified", "schedule": schedule, "warm_up": warm_up})
    found = sampler.sample(model, x, 7, grid="karras")
    assert found.flatten().tolist() == pytest.approx(end, abs=1e-11)
    assert SAMPLERS.create(sampler.to_config()) == sampler


def test_a_searched_schedule_of_flat_rules_reads() -> None:
    rule = {
        "prediction": "v", "order": 4, "corrector": False, "variable": "own", "variant": "exact",
        "corrector_variant": "exact", "span": 1, "stages": [], "reach": None, "differences": [0.5, 1.0, 0.0],
    }  # fmt: skip
    config = {"schedule": [rule], "warm_up": "lower-order", "times": [1.0, 0.5], "error": 0.1, "start_error": 0.2}
    found = Found.from_config(config)
    assert Found.from_config(found.to_config()) == found
    assert found.sampler.schedule[0].difference_weights == (0.5, 1.0, 0.0)


def test_a_flat_rule_with_another_field_is_refused() -> None:
    with pytest.raises(ValueError, match="no field 'ordre'; did you mean 'order'"):
        SAMPLERS.create({"name": "unified", "schedule": [{"ordre": 2}]})
