"""Recipes written by hand are read right, or refused in one screen that names the key. Nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import damaged, edited

from dinit.training import Recipe, load_recipe, parse_recipe
from dinit.training.recipe.file import RecipeError
from dinit.training.recipe.keys import dotted_keys
from dinit.training.run.folder import RunFolderError, read_recipe, write_recipe

BASE = """\
data: {name: digits, split: train}
backbone: {name: dit, patch_size: 4, hidden_size: 8, depth: 1, num_heads: 1}
"""
LOOP = "training: {steps: 10, batch_size: 4, workers: 0}\n"
WHOLE = f"""{BASE}
name: tiny
seed: 3
process: {{name: vp-discrete, schedule: cosine, num_steps: 100}}
parameterization: {{name: v}}
t_max: 1.0
loss: {{weighting: {{name: min-snr, gamma: 5.0}}, terms: [{{name: direction, weight: 0.1}}], variational: 0.001}}
time: {{name: uniform}}
condition_noise: {{gamma: 1.0, kind: gaussian}}
optimizer: {{kind: adamw, lr: 1.0e-3, betas: [0.9, 0.99], weight_decay: 0.0}}
schedule: {{kind: cosine, warmup_steps: 1, floor: 0.1}}
ema: {{decay: 0.99, warmup: true, widths: [0.05], snapshot_every: 5}}
training: {{steps: 10, batch_size: 4, gradient_accumulation: 2, precision: fp32, workers: 0, sample_every: 5}}
tracker: null
sampling: {{sampler: {{name: ddim, eta: 0.5}}, steps: 4, grid: {{name: karras, rho: 7.0}}, guidance: [cfg]}}
"""
SCREEN = 24


def check_refusal(error: Exception) -> None:
    lines = str(error).splitlines()
    assert 0 < len(lines) <= SCREEN
    assert max(map(len, lines)) <= 810
    if isinstance(error, RecipeError):
        known = {key.split(".")[0] for key in dotted_keys()}
        for mistake in error.mistakes:
            named = not mistake.path or mistake.path[0] in known or "unknown key" in mistake.message
            assert named or "given twice" in mistake.message, mistake


def test_edits_of_the_values_of_a_recipe() -> None:
    tree = yaml.safe_load(WHOLE)
    outcomes = {"read": 0, "refused": 0}
    for what, changed in edited(14, tree):
        try:
            recipe = parse_recipe(yaml.safe_dump(changed, allow_unicode=True))
        except RecipeError as error:
            check_refusal(error)
            outcomes["refused"] += 1
        else:
            assert_same(changed, recipe, what)
            outcomes["read"] += 1
    assert outcomes["read"] > 5
    assert outcomes["refused"] > 20


def assert_same(given: dict[str, Any], recipe: Recipe, what: str) -> None:
    """Each value of the YAML is in the recipe as it was given."""
    read = recipe.to_dict()
    for key, value in given.items():
        compare(value, read[key], f"{what}: {key}")


def compare(given: Any, read: Any, what: str) -> None:
    if isinstance(read, dict) and isinstance(given, str):
        assert read["name"] == given, what
    elif isinstance(read, dict) and isinstance(given, dict):
        for key, value in given.items():
            compare(value, read[key], f"{what}.{key}")
    elif isinstance(read, list) and not isinstance(given, list):
        compare([] if given is None else [given], read, what)
    elif isinstance(read, list):
        assert len(read) == len(given), what
        for one, other in zip(given, read, strict=True):
            compare(one, other, what)
    else:
        assert read == given, what
        assert isinstance(read, bool) == isinstance(given, bool), what


def test_damaged_files(tmp_path: Path) -> None:
    refused = 0
    for _, content in damaged(14, WHOLE.encode()):
        (tmp_path / "recipe.yaml").write_bytes(content)
        try:
            load_recipe(tmp_path / "recipe.yaml")
        except ValueError as error:
            check_refusal(error)
            assert "recipe" in str(error)
            refused += 1
    assert refused > 30


READ: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a byte order mark": (b"\xef\xbb\xbf" + (BASE + LOOP).encode(), {"training.steps": 10}),
    "Windows' line ends": ((BASE + LOOP).replace("\n", "\r\n").encode(), {"training.steps": 10}),
    "JSON": (
        b'{"data": {"name": "digits"}, "backbone": {"name": "dit", "patch_size": 4, "hidden_size": 8, "depth": 1, '
        b'"num_heads": 1}, "training": {"steps": 5}}',
        {"training.steps": 5},
    ),
    "underscores": ((BASE + "training: {steps: 1_000}\n").encode(), {"training.steps": 1000}),
    "an exponent": ((BASE + LOOP + "optimizer: {lr: 1e-4}\n").encode(), {"optimizer.lr": 1e-4}),
    "a whole number for another": ((BASE + LOOP + "t_max: 1\n").encode(), {"t_max": 1.0}),
    "a date for a name": ((BASE + LOOP + "name: 2024-01-01\n").encode(), {"name": "2024-01-01"}),
    "digits and a colon for a name": ((BASE + LOOP + "name: 1:30\n").encode(), {"name": "1:30"}),
    "zeros before a name": ((BASE + LOOP + "name: 007\n").encode(), {"name": "007"}),
    "a name in quotes": ((BASE + LOOP + "name: '5'\n").encode(), {"name": "5"}),
    "nothing for a list": ((BASE + LOOP + "sampling: {guidance: null}\n").encode(), {"sampling.guidance": []}),
    "hexadecimal": ((BASE + LOOP + "seed: 0x10\n").encode(), {"seed": 16}),
}


@pytest.mark.parametrize("case", READ)
def test_recipes_that_are_read(case: str, tmp_path: Path) -> None:
    content, values = READ[case]
    (tmp_path / "recipe.yaml").write_bytes(content)
    recipe = load_recipe(tmp_path / "recipe.yaml").to_dict()
    for key, value in values.items():
        read: Any = recipe
        for part in key.split("."):
            read = read[part]
        assert read == value


def of(line: str) -> bytes:
    return (BASE + LOOP + line + "\n").encode()


def loop(value: str) -> bytes:
    return f"{BASE}training: {value}\n".encode()


REFUSED: dict[str, tuple[bytes, str]] = {
    "UTF-16": ((BASE + LOOP).encode("utf-16"), "save it as UTF-8"),
    "Latin-1": (b"name: caf\xe9\n", "save it as UTF-8"),
    "a tab": (BASE.encode() + b"training:\n\tsteps: 10\n", "line 4: not valid YAML"),
    "a NUL byte": (of("") + b"\0", "not valid YAML: special characters are not allowed"),
    "a control character": (of("name: a\x1fb"), "special characters"),
    "half a character": (of('name: "\\ud800"'), "name: cannot be read: surrogates not allowed"),
    "nothing": (b"# only this\n", "a mapping of 'key: value' lines"),
    "two documents": (of("---\na: 1"), "another document"),
    "an alias of itself": (of("sampling: &s {grid: *s}"), "inside each other"),
    "aliases of aliases": (
        b"a: &a [1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 8)) for i in range(9)),
        "more than 20000 values",
    ),
    "brackets without end": (of("name: " + "[" * 3000 + "]" * 3000), "not valid YAML"),
    "another tag": (loop("{steps: !!python/name:os.system 3}"), "not valid YAML"),
    "5000 digits": (loop(f"{{steps: {'9' * 5000}}}"), "training.steps: cannot be read"),
    "400 digits": (loop(f"{{steps: {'9' * 400}}}"), "training.steps: input should be less"),
    "a seed of no generator": (of("seed: 100000000000000000000000"), "seed: input should be less"),
    "infinity": (of("optimizer: {lr: .inf}"), "optimizer.lr: input should be a finite number"),
    "not a number": (of("optimizer: {weight_decay: .nan}"), "optimizer.weight_decay"),
    "octal of YAML 1.1": (of("seed: 010"), "seed: input should be a valid integer, got '010'"),
    "a text for a number": (loop("{steps: '1000'}"), "training.steps: input should be a valid integer, got '1000'"),
    "a fraction of steps": (loop("{steps: 10.5}"), "training.steps: input should be a valid integer, got 10.5"),
    "yes for a number": (loop("{steps: yes}"), "training.steps: input should be a valid integer, got True"),
    "a list for a number": (loop("{steps: [10]}"), "training.steps"),
    "nothing for a section": (of("loss:"), "line 4: loss: should be a mapping"),
    "a number for a name": (of("name: 5"), "name: input should be a valid string (in quotes it is one), got 5"),
    "a number for a path": (
        b"data: {name: folder, path: 2024, size: 8}\n",
        "data.path: input should be",
    ),
    "a path for a name": (of("name: ../../x"), "name: should be a name without /"),
    "a dash": (of("label-dropout: 0.2"), "line 4: label-dropout: unknown key; did you mean 'label_dropout'?"),
    "a key given twice": (of(LOOP), "given twice, also at line 3"),
    "a list for a key": (of("? [a, b]\n: 2"), "a sequence as a key: unknown key"),
    "a depth without end": (
        of("").replace(b"depth: 1", b"depth: 100000000"),
        "backbone.depth: 100000000",
    ),
    "a width without end": (of("").replace(b"size: 8", b"size: 16000000000"), "backbone.hidden_size"),
    "a long name": (of(f"loss: {{weighting: {'y' * 100000}}}"), "loss.weighting.name: unknown weighting 'yyy"),
    "many mistakes": (of(f"ema: {{widths: [{','.join(['9'] * 5000)}]}}"), "and 4985 more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_recipes_that_are_refused(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe\.yaml") as caught:
        load_recipe(tmp_path / "recipe.yaml")
    check_refusal(caught.value)
    assert message in str(caught.value)


OVERRIDES = {
    "seed=&a [*a]": "inside each other",
    "seed=\x00": "special characters",
    'name="\\ud800"': "surrogates",
    "training.steps=1:30": "got '1:30'",
    "training.steps=": "got None",
    "training=5": "should be a mapping",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides_that_are_refused(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(BASE + LOOP, [override])
    check_refusal(caught.value)
    assert OVERRIDES[override] in str(caught.value)


def test_edits_of_the_recipe_in_a_runs_folder(tmp_path: Path) -> None:
    recipe = parse_recipe(BASE + LOOP)
    write_recipe(tmp_path, recipe)
    assert read_recipe(tmp_path) == recipe
    path = tmp_path / "recipe.yaml"
    whole, refused = path.read_bytes(), 0
    trees = [yaml.safe_dump(tree, allow_unicode=True).encode() for _, tree in edited(15, yaml.safe_load(whole), 30)]
    for content in (*trees, *(content for _, content in damaged(15, whole, 30)), b"[" * 3000, b"\0"):
        path.write_bytes(content)
        try:
            read_recipe(tmp_path)
        except RunFolderError as error:
            check_refusal(error)
            assert "recipe.yaml" in str(error)
            refused += 1
    assert refused > 25
