"""Options of samplers under the names that they had before: files and calls that use them still read."""

from __future__ import annotations

import pytest

from dinit.samplers.base import SAMPLERS

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
