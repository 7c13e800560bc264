"""Renamed options in recipes: old and new spellings are one recipe, so an old run resumes with a new file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinit import _deprecate
from dinit.training import RecipeError, parse_recipe
from dinit.training.run.folder import check_run_folder, write_recipe

NEW = """
data: digits
backbone: {name: dit, patch_size: 2, hidden_size: 48, depth: 1, num_heads: 4}
time: {name: stratified, base: {name: logit-normal, std: 0.7}}
sampling: {sampler: {name: deis, order: 2}, guidance: [{name: cfg, scale: 2}]}
training: {steps: 4}
"""
OLD = NEW.replace("base:", "of:").replace("order:", "levels:")


def test_old_and_new_spellings_are_one_recipe() -> None:
    _deprecate._warned.clear()
    with pytest.warns(DeprecationWarning, match="option '(of|levels)' of .* is deprecated"):
        old = parse_recipe(OLD)
    assert old == parse_recipe(NEW)
    assert old.time.options == {"base": {"name": "logit-normal", "std": 0.7}}
    assert old.sampling.sampler.options == {"order": 2}


def test_a_run_begun_with_an_old_spelling_resumes_with_the_new(tmp_path: Path) -> None:
    recipe = parse_recipe(NEW)
    write_recipe(tmp_path, recipe)
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    assert "  base:" in text
    (tmp_path / "recipe.yaml").write_text(text.replace("  base:", "  of:"), encoding="utf-8")
    check_run_folder(tmp_path, recipe, resume=True)
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        check_run_folder(tmp_path, parse_recipe(NEW.replace("0.7", "0.8")), resume=True)


def test_an_option_under_both_names_is_a_mistake() -> None:
    with pytest.raises(RecipeError, match="'of' is the old name of 'base'; give 'base' alone"):
        parse_recipe(NEW.replace("base: {", "of: uniform, base: {"))
