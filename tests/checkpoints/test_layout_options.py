"""Networks of other options than the published ones, under published names: all are read off the tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.checkpoints.keymap import Rule
from dinit.checkpoints.layouts import LAYOUTS
from dinit.models.base import BACKBONES, Backbone
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.weights.convert import convert

GROUP = re.compile(r"\(([^()?]*)\)")
Change = Callable[[Tensor], Tensor]


def inverse(rule: Rule) -> tuple[re.Pattern[str], str]:
    """A pattern of our names, and the published name for it: the rule, read backwards."""
    groups = GROUP.findall(rule.pattern)
    ours, seen = re.escape(str(rule.target)), set()
    for number, group in enumerate(groups, 1):
        if f"\\\\{number}" in ours:
            seen.add(number)
            ours = ours.replace(f"\\\\{number}", f"(?P<g{number}>{group})")
    numbers = iter(range(1, len(groups) + 1))
    theirs = GROUP.sub(
        lambda match: f"\\g<g{number}>" if (number := next(numbers)) in seen else match[1], rule.pattern
    )
    return re.compile(ours), theirs.replace(r"\.", ".")


def published_state(model: Backbone, layout: Any, undo: Mapping[str, Change]) -> dict[str, Tensor]:
    """The state under the layout's names. undo: for tensors stored in another form, by a part of our name."""
    backwards = [inverse(rule) for rule in layout.rules if rule.target is not None]
    state = model.state_dict()
    found = {}
    for key, tensor in state.items():
        names = [match.expand(theirs) for ours, theirs in backwards if (match := ours.fullmatch(key))]
        # DiMR's norms have a scale, called weight in those with a bias as well.
        shifted = re.sub(r"\.scale\.", ".shift.", key) in state and ".scale." in key
        name = names[1] if shifted else names[0]
        change = next((one for part, one in undo.items() if part in key), None)
        found[name] = tensor.clone() if change is None else change(tensor).clone()
    return found | {name: table[None] for name, table in layout.tables(model).items()}


SMALL = {"image_size": 8, "in_channels": 4, "hidden_size": 24, "depth": 2, "num_heads": 2, "patch_size": 2}
STAGES = (
    {
        "width": 16,
        "mlp_width": 24,
        "depth": 3,
        "patch_size": 2,
        "image_ratio": 2,
        "kernel_size": None,
        "head_kernel": 3,
    },
    {
        "width": 8,
        "mlp_width": 20,
        "depth": 5,
        "patch_size": 2,
        "image_ratio": 1,
        "kernel_size": 5,
        "head_kernel": 1,
    },
    {
        "width": 12,
        "mlp_width": 8,
        "depth": 1,
        "patch_size": 1,
        "image_ratio": 1,
        "kernel_size": 3,
        "head_kernel": 3,
    },
)
DIC = {"image_size": 8, "in_channels": 4, "hidden_size": 8, "depth": (2, 1, 1, 1, 2)}
DICO = {"image_size": 8, "in_channels": 4, "hidden_size": 8, "depth": (1, 1, 1, 1, 1)}
DIS = {"image_size": 8, "in_channels": 4, "embed_dim": 24, "depth": 2, "patch_size": 2}
DIMR = {"image_size": 8, "in_channels": 4, "stages": STAGES, "num_heads": 2}
# Layout -> options away from the published ones, all of which its tensors have to give.
CASES: dict[str, list[dict[str, Any]]] = {
    "dit": [
        {**SMALL, "depth": 3, "learn_sigma": True, "mlp_ratio": 2.5},
        {**SMALL, "in_channels": 2, "patch_size": 1, "learn_sigma": True},
        {**SMALL, "patch_size": 4, "depth": 1, "num_classes": 2, "null_class": False},
        {**SMALL, "image_size": 12, "num_classes": 0, "mlp_ratio": 1.0},
    ],
    "sit": [
        {**SMALL, "depth": 5, "spare_half": True, "in_channels": 3},
        {**SMALL, "mlp_ratio": 3.0, "patch_size": 1, "in_channels": 2},
    ],
    "lightningdit": [
        {**SMALL, "use_rope": True, "use_qknorm": True, "mlp_ratio": 3.0, "learn_sigma": True},
        {**SMALL, "use_rope": True, "use_swiglu": True, "in_channels": 2, "depth": 3},
        {**SMALL, "use_rope": True, "use_swiglu": True, "use_rmsnorm": True, "wo_shift": True, "patch_size": 1},
        {**SMALL, "use_qknorm": True, "use_rmsnorm": True},
        {**SMALL, "wo_shift": True, "mlp_ratio": 2.0},
    ],
    "diffit": [
        {**SMALL, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0, "learn_sigma": True},
        {**SMALL, "in_channels": 2, "patch_size": 4, "depth": 1},
    ],
    "dic": [
        {**DIC, "learn_sigma": True, "skip_stride": 2},
        {**DIC, "depth": (3, 2, 3), "channel_mult": (1, 2, 1), "skip_stride": 1, "in_channels": 2},
        {**DIC, "depth": (4, 3, 1, 3, 4), "channel_mult": (1, 2, 3, 2, 2), "skip_stride": 2},
        {**DIC, "depth": (5, 1, 2, 1, 5), "skip_stride": 4},
    ],
    "dico": [
        {**DICO, "mlp_ratio": 3.0, "learn_sigma": True},
        {**DICO, "depth": (1, 2, 3, 2, 1), "in_channels": 2, "mlp_ratio": 1.5},
    ],
    "dis": [
        {**DIS, "states": 8, "learn_sigma": True},
        {**DIS, "states": 32, "dt_rank": 5, "depth": 4, "in_channels": 2},
        {**DIS, "expand": 3, "conv_width": 3, "patch_size": 4},
        {**DIS, "expand": 1, "num_classes": 0, "states": 1},
        {**DIS, "num_classes": 1, "null_class": False, "conv_width": 2},
    ],
    "dimr": [
        {**DIMR, "learn_sigma": True},
        {**DIMR, "stages": (STAGES[0], STAGES[2]), "in_channels": 2, "num_heads": 4},
        {**DIMR, "stages": (STAGES[0], {**STAGES[1], "kernel_size": None}, STAGES[2])},
        {**DIMR, "stages": tuple({**stage, "head_kernel": 3} for stage in STAGES), "coarse_heads": False},
    ],
}  # fmt: skip
ROWS = [(layout, options) for layout, rows in CASES.items() for options in rows]
UNDO: dict[str, dict[str, Change]] = {
    "diffit": {"bias.table": lambda table: table.flatten(1).T},
    "dis": {"positions": lambda table: table[None]},
    "dimr": {"positions": lambda table: table.flatten(0, 1)},
}
UNSEEN = ("num_heads", "dropout", "freq_shift", "mlp_norm_eps", "skip_stride", "dt_rank")


@pytest.mark.parametrize(("name", "options"), ROWS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(ROWS)])
@torch.no_grad()
def test_options_are_read_off_the_tensors(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    layout = LAYOUTS[name]()
    model = layout.model(**{"num_classes": 5, **options}).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    torch.save({"ema": published_state(model, layout, UNDO.get(name, {}))}, tmp_path / "a.pt")
    named = ["null_class"] if name == "diffit" else ["null_class", "num_heads"]
    given = {key: value for key, value in options.items() if key in named}
    if name in ("dic", "dico"):  # without a table of positions
        given["image_size"] = options["image_size"]
    made = convert(tmp_path / "a.pt", tmp_path / "p", layout=name, options=given)
    converted = Pipeline.from_pretrained(made.folder).backbone
    for field in model.config:
        if not field.startswith("_") and field not in UNSEEN:
            theirs, ours = _plain(model.config[field]), _plain(converted.config[field])
            assert ours == (pytest.approx(theirs, abs=0.05) if isinstance(theirs, float) else theirs), field
    x = torch.randn(2, model.in_channels, model.image_size, model.image_size, generator=generator)
    t, labels = torch.tensor([3.0, 700.0]), torch.tensor([max(model.num_classes - 1, 0)] * 2)
    ours, theirs = (one(x, t, one.embed(labels)) for one in (converted, model))
    assert ours.shape == theirs.shape == (2, model.out_channels, model.image_size, model.image_size)
    assert torch.equal(ours, theirs)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def test_every_family_of_tokens_or_levels_has_rows() -> None:
    elsewhere = {"adm", "adm-superres", "adm-classifier"}  # tests/models/test_adm_layout.py
    elsewhere |= {"ncsnpp", "ncsnpp-vp", "ncsnpp-sub-vp", "ncsnpp-ve-discrete", "ddpm"}  # test_score_sde.py
    assert set(LAYOUTS) - elsewhere - {"diffusers-dit"} == set(CASES)
    assert {LAYOUTS[name].backbone for name in CASES} <= set(BACKBONES)
