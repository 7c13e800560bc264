"""Mistakes of a command line are found before torch is imported, by names read from the source files."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dinit.cli import main
from dinit.cli.names import PLACES, SourceRegistry, registry_of
from dinit.evaluation.metrics.base import METRICS
from dinit.specs import option_kinds

# A wrong command line, and a part of its message.
WRONG: list[tuple[str, str]] = [
    ("generat digits-dit", "Did you mean 'generate'?"),
    ("generate digits-dit --stepz 3", "No such option: --stepz"),
    ("generate digits-dit --num-images -5", "--num-images must be at least 1, got -5"),
    ("generate digits-dit --steps two", "--steps must be a whole number of at least 1, got 'two'"),
    ("generate digits-dit --num-images 2.5", "--num-images must be a whole number, at least 1, got 2.5"),
    ("generate digits-dit --sampler dpmpp-2n", "unknown sampler 'dpmpp-2n'; did you mean 'dpmpp-2s'?"),
    ("generate digits-dit --sampler dpmpp_2m_karras", "write sampler='dpmpp-2m', grid='karras'"),
    ("generate digits-dit --sampler-option etta=1", "sampler 'euler' has no option 'etta'"),
    ("generate digits-dit --sampler ddim:etta=1", "sampler 'ddim' has no option 'etta'; did you mean 'eta'?"),
    ("generate digits-dit --guidance cfg:2", "did you mean cfg:scale=2?"),
    ("generate digits-dit --guidance abc", "a number alone is the scale of CFG"),
    ("generate digits-dit --guidance nan", "scale must be"),
    ("generate empty/", "empty is an empty folder, wanted: a pipeline"),
    ("generate digits-dit --grid karas", "unknown grid 'karas'; did you mean 'karras'?"),
    ("generate digits-dit --grid times", "needs a value for values"),
    ("generate digits-dit --guidance cgf:scale=2", "unknown guidance 'cgf'; did you mean 'cfg'?"),
    ("generate digits-dit --end posterior", "unknown end 'posterior'; did you mean 'posterior-mean'?"),
    ("generate digits-dit --dtype float23", "unknown dtype 'float23'; did you mean 'float32'?"),
    ("generate digits-dit --device gpu7", "device 'gpu7' cannot be used"),
    ("generate digits-dti", "did you mean 'digits-dit'?"),
    ("generate digits-dit --classes 3,77", "unknown class '77'"),
    ("generate digits-dit --classes 1 --labels 2", "contradict each other"),
    ("generate digits-dit --out set --num-images 8 --classes 3,x", "unknown class 'x'"),
    ("generate digits-dit --out set --labels-from nope.txt", "there is no file of labels nope.txt"),
    ("generate digits-dit --class-order randm --out set", "unknown class order 'randm'; did you mean 'random'?"),
    ("generate digits-dit --out taken.txt/a.png", "cannot be written"),
    ("generate digits-dit --out -", "must be the name of a file or folder, got '-'"),
    ("generate digits-dit --out a.jpg", "must end in .png"),
    ("train nope", "there is no recipe file nope"),
    ("train cut.png", "cut.png is a picture, wanted: a recipe (.yaml)"),
    ("train bad.yaml", "bad.yaml has 4 mistakes: line 1: data.path: there is no folder nowhere"),
    ("train bad.yaml", "line 2: backbone.depht: backbone 'dico' has no option 'depht'"),
    ("train bad.yaml", "line 3: trainin: unknown key; did you mean 'training'?"),
    ("train bad.yaml", "training: required, and not given"),
    ("train digits-dico training.stepz=3", "training.stepz: unknown key; did you mean 'steps'?"),
    ("train digits-dico training.steps=abc", "training.steps: input should be a valid integer, got 'abc'"),
    ("train digits-dico sampling.sampler=dpmpp-2n", "unknown sampler 'dpmpp-2n'; did you mean 'dpmpp-2s'?"),
    ("train digits-dico backbone.depth=x", "backbone.depth: depth must be a list of whole numbers, got 'x'"),
    ("train digits-dico loss.terms=[nope]", "loss.terms.0.name: unknown loss term 'nope'"),
    ("train digits-dico --data photos/", "there is no folder photos/"),
    ("train digits-dico --data empty/", "the folder empty/ is empty"),
    ("train digits-dico --data taken.txt", "taken.txt is a text, wanted: a folder of pictures"),
    ("train --init-from digits-dit --data digits training.stepz=3", "did you mean 'steps'?"),
    ("train digits-dico finetune.init_from=nope", "finetune.init_from: there is no pipeline nope"),
    ("train --init-from nope --data x", "no shipped pipeline 'nope'"),
    ("ema nope --sigma-rel 0.1 --to x", "there is no run nope"),
    ("ema taken.txt --sigma-rel 0.1 --to x", "taken.txt is a text, wanted: the folder of a run"),
    ("ema . --sigma-rel 0.5 --to x", "--sigma-rel must be in 0 .. 0.28, got 0.5"),
    ("combine nope --to x", "there is no run nope"),
    ("combine . --to x --of emma", "unknown weights 'emma'; did you mean 'ema'?"),
    ("combine . --to x --metric fidd", "unknown metric 'fidd'; did you mean 'fid'?"),
    ("evaluate nope", "no shipped pipeline 'nope'"),
    ("evaluate digits-dit --metrics fid,kidd", "unknown metric 'kidd'; did you mean 'kid'?"),
    ("evaluate digits-dit --data digts", "unknown data set 'digts'; did you mean 'digits'?"),
    ("evaluate digits-dit --features incption-v3", "did you mean 'inception-v3'?"),
    ("evaluate digits-dit --num-samples 3", "--num-samples must be at least 8, got 3"),
    ("evaluate digits-dit --reference no.npz", "there is no file of statistics no.npz"),
    ("evaluate nope --during-training", "there is no run nope"),
    ("evaluate digits-dit --html a.txt", "must end in .html"),
    ("stats digits --features nope", "unknown feature extractor 'nope'"),
    ("stats digits --out -", "must be the name of a file or folder, got '-'"),
    ("encode nope --data digits --out x", "there is no autoencoder nope"),
    ("encode a/b --data digts --out x", "did you mean 'digits'?"),
    ("encode a/b --data digits --out x --store int8", "unknown store 'int8'"),
    ("convert nope.pt --to x", "there is no file or folder nope.pt"),
    ("convert taken.txt --to x --layout sti", "unknown checkpoint layout 'sti'; did you mean 'sit'?"),
    ("convert taken.txt --to x --process flwo", "unknown process 'flwo'; did you mean 'flow'?"),
    ("export digits-dit --format onnx --to x", "unknown format 'onnx'"),
    ("export nope --format dit --to x", "no shipped pipeline 'nope'"),
    ("replay nope.png", "there is no picture or folder nope.png"),
    ("replay taken.txt --pipeline nope", "no shipped pipeline 'nope'"),
    ("replay taken.txt --tolerance 300", "--tolerance must be in 0 .. 255, got 300"),
    ("info nope", "no shipped pipeline 'nope'"),
    ("info nope.png", "there is no picture nope.png"),
    ("info cut.png", "cut.png is damaged: it ends early"),
    ("replay cut.png", "cut.png is damaged: it ends early"),
    ("recipe nope", "there is no folder nope"),
    ("recipe digits:sise=3", "has no option 'sise'"),
    ("recipe . --device gpu", "device 'gpu' cannot be used"),
    ("recipe . --out a.txt", "must end in .yaml"),
    ("list smplers", "unknown kind 'smplers'; did you mean 'samplers'?"),
    ("verify --sampler ddmi", "unknown sampler 'ddmi'"),
    ("verify --process vpp", "unknown process 'vpp'"),
]
BAD = """data: {name: folder, path: nowhere, size: 8}
backbone: {name: dico, depht: 2}
trainin: {steps: 3}
"""
_PROGRAM = """
import contextlib, io, json, sys
from dinit.cli import main
said = []
for line in json.load(sys.stdin):
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        try:
            main(line)
        except SystemExit as ended:
            code = ended.code
    said.append((code, stream.getvalue(), sorted({"torch", "diffusers", "numpy", "PIL"} & set(sys.modules))))
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Of every wrong line: exit code, message, and what heavy modules were imported until then; one process."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "taken.txt").write_text("keep me")
    (folder / "bad.yaml").write_text(BAD)
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17) + b"\0\0\1\0IDAT")
    (folder / "empty").mkdir()
    lines = [line.split() for line, _ in WRONG]
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(
        command, input=json.dumps(lines), cwd=folder, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["bad.yaml", "cut.png", "empty", "taken.txt"]
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[line for line, _ in WRONG])
def test_a_mistake_is_found_before_torch_is_imported(said: list[Any], number: int) -> None:
    code, shown, heavy = said[number]
    assert WRONG[number][1] in " ".join(shown.replace("│", " ").split())
    assert code == 2
    assert heavy == []
    assert len(shown.splitlines()) <= 24, "one screen"


@pytest.mark.parametrize("kind", PLACES)
def test_the_source_files_say_what_the_registry_says(kind: str) -> None:
    module, variable = PLACES[kind]
    METRICS.names()  # an extractor lies next to the metric that needs it
    real, read = getattr(importlib.import_module(module), variable), registry_of(kind)
    assert (read.kind, read._packages) == (real.kind, real._packages)
    assert read.names() == real.names()
    # Some tests import what registers further entries, which are not listed, from outside the package.
    assert read._known == {key: found for key, found in real._known.items() if found[0] in real.names()}
    assert read._special == real._special
    assert read._unread == set()
    equal = {name: f" (special case: equals {one} at its defaults)" for name, one in real._special.items()}
    assert list(read.listed().items()) == [(name, real.summary(name) + equal.get(name, "")) for name in real]
    for name in real:
        assert read.summary(name) == real.summary(name)
        assert getattr(read[name], "renamed_options", {}) == getattr(real[name], "renamed_options", {})
        assert option_kinds(read[name]) == option_kinds(real[name])
        ours, theirs = (inspect.signature(one[name]).parameters.values() for one in (read, real))
        assert [one.default is one.empty for one in ours] == [one.default is one.empty for one in theirs]


def test_options_that_cannot_be_read_are_left_to_the_registry(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "things").mkdir()
    texts = {
        "base.py": 'THINGS = Registry("thing", "dinit.things")',
        "one.py": "from numpy import Base\n@THINGS.register('one')\n@dataclass\nclass One(Base):\n    size: int\n",
        "two.py": "SIZE = 2\n@THINGS.register('two', aliases={'three': {'size': SIZE}})\ndef two(size: int): ...\n",
        "four.py": "@THINGS.register('four')\ndef four(**options): ...\n",
    }
    for name, text in texts.items():
        (tmp_path / "things" / name).write_text(text)
    monkeypatch.setattr("dinit.cli.names._ROOT", tmp_path)
    things = SourceRegistry("dinit.things.base", "THINGS")
    assert things.names() == ["four", "one", "two"]
    things.check("four:anything=3")
    things.check("three")
    with pytest.raises(ValueError, match="thing 'two' has no option 'sise'; did you mean 'size'"):
        things.check("two:sise=1")
    with pytest.raises(ValueError, match="thing 'two' needs a value for size"):
        things.check("two")


@pytest.mark.parametrize("line", ["--help", "generate --help", "--version", "list --names", "list samplers"])
def test_help_and_lists_import_nothing_heavy(line: str) -> None:
    program = _PROGRAM.replace("io.StringIO()", "io.StringIO(); sys.stdout, kept = stream, sys.stdout")
    program = program.replace("json.dump(said, sys.stdout)", "json.dump(said, kept)")
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, input=json.dumps([line.split()]), capture_output=True, text=True, check=True, timeout=280
    )
    ((code, _, heavy),) = json.loads(done.stdout)
    assert (code or 0, heavy) == (0, [])


def test_python_runs_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dinit", "--version"], capture_output=True, text=True, check=True, timeout=280
    )
    with pytest.raises(SystemExit):
        main(["--version"])
    assert done.stdout.startswith("dinit 0.")
