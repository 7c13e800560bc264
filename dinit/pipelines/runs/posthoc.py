"""Post-hoc EMA: a trained run's pipeline with an EMA of another width."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dinit.cards import CARD
from dinit.files import user_path, whole_folder
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.hub import trained_card
from dinit.targets import check_writable
from dinit.training.averaging.snapshots import average_of_width
from dinit.training.run.folder import check_run, read_recipe


def pipeline_of_width(run: str | Path, sigma_rel: float, to: str | Path, step: int | None = None) -> Path:
    """Writes the run's pipeline to `to` with the EMA of relative width sigma_rel in place of its own.

    run: a folder of `train` whose recipe has ema.widths. step: the average as it was after that many steps; None is
    the last. Karras et al. 2024 (EDM2). ValueError for a width or step that the snapshots do not cover, and
    FileExistsError for a folder that exists.
    """
    run, to = user_path(run), user_path(to)
    if to.exists():
        raise FileExistsError(f"{to} is there already; choose another folder, or remove it")
    check_writable(to.parent)
    check_run(run)
    averages, last = average_of_width(run / "ema", sigma_rel, step)
    pipeline = Pipeline.from_pretrained(run / "pipeline")
    with torch.no_grad():
        for name, parameter in pipeline.backbone.named_parameters():
            parameter.copy_(averages[name])
    facts = json.loads((run / "pipeline" / "training.json").read_text(encoding="utf-8"))
    with whole_folder(to) as temporary:
        (temporary / CARD).write_text(trained_card(pipeline, read_recipe(run), facts), encoding="utf-8")
        pipeline.save_pretrained(temporary)
        (temporary / "recipe.yaml").write_bytes((run / "pipeline" / "recipe.yaml").read_bytes())
        facts["ema"] = {"sigma_rel": sigma_rel, "step": last}
        (temporary / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return to
