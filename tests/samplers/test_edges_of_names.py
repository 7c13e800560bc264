"""Names that other programs make of a sampler and a grid, or of a sampler and a guidance, in every spelling."""

from __future__ import annotations

import pytest

from dinit.registry import UnknownName
from dinit.samplers import GRIDS, SAMPLERS

STEMS = {
    "euler": "euler",
    "dpmpp_2m": "dpmpp-2m",
    "DPM++ 2M SDE": "dpmpp-2m-sde",
    "dpm2-a": "ancestral:solver=dpm-2",
}
GRID_ENDINGS = {
    "karras": "karras",
    "polyexponential": "polyexponential",
    "exponential": "exponential",
    "ays": "align-your-steps",
    "align-your-steps": "align-your-steps",
    "Align Your Steps": "align-your-steps",
}


@pytest.mark.parametrize("between", ["_", "-", " "])
@pytest.mark.parametrize("stem", STEMS)
def test_a_sampler_with_a_grid_or_a_guidance_in_its_name_is_answered(stem: str, between: str) -> None:
    found = STEMS[stem]
    for ending, grid in GRID_ENDINGS.items():
        with pytest.raises(UnknownName, match=f"write sampler='{found}', grid='{grid}'$"):
            SAMPLERS.resolve(f"{stem}{between}{ending}")
        assert grid in GRIDS
    for ending in ("cfg_pp", "cfg-pp", "cfg++", "CFG++", "cfg pp"):
        with pytest.raises(UnknownName, match=r"write sampler='.*', guidance='cfg\+\+'$"):
            SAMPLERS.resolve(f"{stem}{between}{ending}")
    for name in (f"sample{between}{stem}", f"{stem}{between}gpu", f"sample{between}{stem}{between}gpu"):
        with pytest.raises(UnknownName, match=f"write sampler='{found}'$"):
            SAMPLERS.resolve(name)
