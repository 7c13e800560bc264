"""What the errors of conversion advise works, in Python and on the command line, where it is shown."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from reference import GOLDEN, Reference

from dinit.checkpoints.advice import also_in_python
from dinit.cli import main
from dinit.pipelines.weights.convert import convert


def golden(name: str) -> dict[str, Tensor]:
    return Reference(GOLDEN / f"{name}.safetensors").state


@dataclass(frozen=True)
class Case:
    """A file that is refused with advice, and what the user fills in.

    Args:
        file: Name of the file and what it holds.
        reason: A part of the error.
        filled: Values for `...` in the advice.
        choice: Which of several choices is taken.
        given: What the first call has already.
        also: What the second call needs besides.
    """

    file: tuple[str, Any]
    reason: str
    filled: dict[str, Any] = field(default_factory=dict)
    choice: int = 0
    given: dict[str, Any] = field(default_factory=dict)
    also: dict[str, Any] = field(default_factory=dict)


HEADS = {"options": {"num_heads": 4}}
DIT = golden("dit_sigma")
UNTRAINED = {key: torch.zeros_like(one) if "final_layer.linear" in key else one for key, one in DIT.items()}
LARGER = {key: one if key == "pos_embed" else one + 1 for key, one in DIT.items()}
CASES = {
    "heads": Case(("a.pt", DIT), "a.pt: num_heads cannot be inferred", {"num_heads": 4}),
    "heads of a folder of diffusers": Case(("b.pt", golden("diffusers_dit")), "published DiT", {"num_heads": 4}),
    "several options": Case(
        ("a.pt", golden("adm_cond_neworder")),
        "head_dim, num_heads, attention_order cannot be inferred",
        {"head_dim": None, "num_heads": 2, "attention_order": "qkv-first"},
    ),
    "layout": Case(("a.pt", UNTRAINED), "could be of dit or sit", choice=1, given=HEADS),
    "layout against the name": Case(("sit-a.pt", DIT), "is named as sit, but", given=HEADS),
    "weights": Case(
        ("a.pt", {"model": LARGER, "ema_0.99": DIT, "ema_0.999": DIT | {"x_embedder.proj.bias": torch.ones(48)}}),
        "2 averaged sets of weights", given=HEADS,
    ),
    "the model's own": Case(
        ("a.pt", {"model": DIT, "ema": {"x": torch.ones(3)}}), "that lack 41 of the 42 tensors", given=HEADS
    ),
    "bytes of an average": Case(("a.pt", {"model": DIT, "ema": b"x"}), "has no tensors in ema", given=HEADS),
    "no such weights": Case(
        ("a.pt", {"model": DIT}), "has no ema weights, it has model: choose one", given={**HEADS, "weights": "ema"},
        also={"weights": "model"},
    ),
    "a bare state": Case(
        ("a.pt", DIT), "leave weights ('swa') out", given={**HEADS, "weights": "swa"}, also={"weights": None}
    ),
    "noise without signal": Case(
        ("a.pt", DIT), "such networks predict v, x0 or velocity",
        given={**HEADS, "process": {"name": "vp-discrete", "zero_terminal_snr": True}},
        also={"parameterization": "v"},
    ),
}  # fmt: skip


def saved(case: Case, folder: Path) -> Path:
    torch.save(case.file[1], folder / case.file[0])
    return folder / case.file[0]


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {**one, **other}
    options = {**one.get("options", {}), **other.get("options", {})}
    return {**both, "options": options} if options else both


def in_python(text: str, case: Case) -> dict[str, Any]:
    """Keywords that a message names, with the blanks filled in."""
    found: dict[str, Any] = {}
    for name, quoted in re.findall(r"\b(layout|weights)='([^']+)'", text):
        found.setdefault(name, []).append(quoted)
    chosen = {name: values[min(case.choice, len(values) - 1)] for name, values in found.items()}
    for literal in re.findall(r"options=(\{[^}]*\})", text):
        options = ast.literal_eval(literal.replace("...", "None"))
        chosen["options"] = {name: case.filled.get(name, value) for name, value in options.items()}
    return chosen


def on_command_line(text: str, case: Case) -> list[str]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"--(layout|weights) ([\w.-]+\w)", text):
        found.setdefault(name, []).append(value)
    words = [
        one for name, values in found.items() for one in (f"--{name}", values[min(case.choice, len(values) - 1)])
    ]
    for name in dict.fromkeys(re.findall(r"--option (\w+)=", text)):
        value = case.filled[name]
        words += ["--option", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def as_words(given: dict[str, Any]) -> list[str]:
    """Keywords of `convert` as options of the command."""
    words: list[str] = []
    for name, value in given.items():
        if name == "options":
            words += [one for key, v in value.items() for one in ("--option", f"{key}={json.dumps(v)}")]
        elif isinstance(value, dict):
            kind, *rest = value.values()
            keys = list(value)[1:]
            words += [
                f"--{name}",
                f"{kind}:" + ",".join(f"{k}={json.dumps(v)}" for k, v in zip(keys, rest, strict=True)),
            ]
        elif value is not None:
            words += [f"--{name}", str(value)]
    return words


@pytest.mark.parametrize("name", CASES)
def test_advice_in_python(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    file = saved(case, tmp_path)
    with pytest.raises(ValueError, match=re.escape(case.reason)) as caught:
        convert(file, tmp_path / "p", **case.given)
    advice = {**in_python(str(caught.value), case), **case.also}
    assert advice
    assert convert(file, tmp_path / "p", **merged(case.given, advice)).folder.is_dir()


def run(words: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("name", CASES)
def test_advice_on_the_command_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    start = ["convert", str(saved(case, tmp_path)), "--to", str(tmp_path / "p")]
    assert run([*start, *as_words(case.given)]) == 2
    text = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert " ".join(case.reason.split())[-25:] in text
    given = {key: value for key, value in case.given.items() if key not in case.also}
    words = [*as_words(given), *on_command_line(text, case), *as_words(case.also)]
    assert run([*start, *words]) == 0, shlex.join(words)


def test_a_classifier_is_called_by_its_class(tmp_path: Path) -> None:
    state = {
        "input_blocks.0.0.weight": torch.ones(32, 3, 3, 3),
        "input_blocks.1.0.out_layers.3.weight": torch.ones(32, 32, 3, 3),
        "time_embed.0.weight": torch.ones(128, 32),
        "middle_block.0.emb_layers.1.weight": torch.ones(64, 128),
        "middle_block.0.out_layers.3.weight": torch.ones(32, 32, 3, 3),
        "out.2.positional_embedding": torch.ones(32, 65),
        "out.2.c_proj.weight": torch.ones(10, 32, 1),
    }
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"no published ADMClassifier has these sizes") as caught:
        convert(tmp_path / "a.pt", tmp_path / "p")
    assert "backbone 'adm'" not in str(caught.value)
    with pytest.raises(ValueError, match=r"ADMClassifier has no argument 'num_heads'"):
        convert(tmp_path / "a.pt", tmp_path / "p", options={"num_heads": 4})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("give --option num_heads=6", "give --option num_heads=6 (in Python: options={'num_heads': 6})"),
        (
            "--option a=null --option b=true",
            "--option a=null --option b=true (in Python: options={'a': None, 'b': True})",
        ),
        ("--option a=true or --option a=false", "(in Python: options={'a': True} or options={'a': False})"),
        ("give --layout sit", "give --layout sit (in Python: layout='sit')"),
        ("--vae adds one", "--vae adds one (in Python: vae=)"),
        ("weights='ema' (--weights ema)", "weights='ema' (--weights ema)"),
        ("nothing to do", "nothing to do"),
    ],
)
def test_words_of_both(text: str, expected: str) -> None:
    assert also_in_python(text).endswith(expected)
    assert also_in_python(also_in_python(text)) == also_in_python(text)
