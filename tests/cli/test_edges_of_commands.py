"""Exit codes of every command: 0 done, 1 a check failed, 2 an argument cannot be used, 128 + a signal's number."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dinit.cli import main
from dinit.conformance import Check, ConformanceReport
from dinit.pipelines.outputs.replay import Replay
from dinit.pipelines.outputs.sets import MadeSet
from dinit.training.run.divergence import TrainingDiverged
from dinit.training.run.stopping import TrainingStopped

PIPELINE = "digits-dit"


def code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(
        "data: digits\nbackbone: {name: dit, hidden_size: 8, num_heads: 1, depth: 1}\ntraining: {steps: 1}\n"
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\x06tEXtdinit\0\0\0\0\0\0\0\0\0IEND")


def raises(error: BaseException) -> Any:
    def act(*_: Any, **__: Any) -> Any:
        raise error

    return act


def gives(value: Any) -> Any:
    return lambda *_, **__: value


def tried(fits: bool) -> Any:
    return gives(SimpleNamespace(fits=fits, lines=lambda _: ["what it needs"]))


def checked(status: str) -> ConformanceReport:
    return ConformanceReport((Check("ddim", "vp", "order", status, "1.00/1"),))


TRAIN, SMALL = "dinit.pipelines.train.train", ("train", "r.yaml")
DONE = SimpleNamespace(steps=1, seconds=1.0, final_loss=1.0, pipeline=Path("p"), folder=Path("."))
TRY = "dinit.pipelines.runs.dry_run.dry_run"
CHECK, REPLAY = "dinit.conformance.verify", "dinit.pipelines.outputs.replay.replay"
SHORT = RuntimeError("CUDA out of memory")


@pytest.mark.parametrize(
    ("target", "does", "arguments", "expected"),
    [
        (TRAIN, gives(DONE), SMALL, 0),
        (TRAIN, raises(TrainingDiverged("no number")), SMALL, 1),
        (TRAIN, raises(TrainingStopped(signal.SIGTERM, 3)), SMALL, 128 + 15),
        (TRAIN, raises(TrainingStopped(signal.SIGINT, 3)), SMALL, 128 + 2),
        (TRAIN, raises(ValueError("a folder of another run")), SMALL, 2),
        (TRAIN, raises(OSError("a full disk")), SMALL, 2),
        (TRAIN, raises(KeyboardInterrupt()), SMALL, 130),
        (TRAIN, raises(SHORT), SMALL, 2),
        (TRY, tried(True), (*SMALL, "--dry-run"), 0),
        (TRY, tried(False), (*SMALL, "--dry-run"), 1),
        (CHECK, gives(checked("pass")), ("verify",), 0),
        (CHECK, gives(checked("refused")), ("verify",), 0),
        (CHECK, gives(checked("FAIL")), ("verify",), 1),
        (CHECK, gives(ConformanceReport(())), ("verify",), 1),
        (REPLAY, gives(Replay(True, 0, 1, ())), ("replay", "a.png"), 0),
        (REPLAY, gives(Replay(False, 1, 1, ())), ("replay", "a.png"), 1),
        (REPLAY, gives(Replay(False, 0, 1, ("weights",))), ("replay", "a.png"), 1),
    ],
)
def test_a_command_ends_with_the_code_of_its_result(
    target: str, does: Any, arguments: tuple[str, ...], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, does)
    assert code(*arguments) == expected


def test_other_errors_of_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRAIN, raises(RuntimeError("a shape")))
    with pytest.raises(RuntimeError, match="a shape"):
        main(SMALL)
    monkeypatch.setattr(TRAIN, raises(SHORT))
    with pytest.raises(RuntimeError, match="out of memory"):
        main(["--debug", *SMALL])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_set_that_is_stopped_ends_with_its_signal(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []

    def stopped(pipe: Any, call: Any, folder: Path, *_: Any, stop: Any) -> MadeSet:
        asked.append(stop())
        os.kill(os.getpid(), number)
        asked.append(stop())
        return MadeSet(folder, 4, 1, complete=False)

    monkeypatch.setattr("dinit.pipelines.outputs.sets.generate_set", stopped)
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    assert code("generate", PIPELINE, "--out", "set", "--num-images", "4", "--device", "cpu") == 128 + number
    assert asked == [False, True]
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before
    assert "the same call makes what is missing in set" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("dinit.posterior_conformance.verify_posterior", ("verify", "--posterior", "--out", "plain/x.md")),
        ("dinit.pipelines.classifier.train_image_classifier", ("classifier", "digits", "--out", "plain/x")),
        ("dinit.pipelines.runs.combine.search", ("combine", "run", "--to", "plain/x")),
        ("dinit.pipelines.runs.posthoc.average_of_width", ("ema", "run", "--sigma-rel", "0.1", "--to", "plain/x")),
        ("dinit.data.survey.survey", ("recipe", "digits", "--out", "plain/x.yaml")),
    ],
)
def test_a_result_that_cannot_be_written_is_found_before_the_work(
    target: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plain").touch()
    Path("run").mkdir()
    monkeypatch.setattr(target, raises(AssertionError("it began")))
    assert code(*arguments) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "plain" in said
    assert "cannot be written: Not a directory" in said


def test_the_table_of_verify_makes_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    report = SimpleNamespace(
        outcomes=(), passed=True, table=lambda: "", markdown=lambda: "# a table", failures=list
    )
    monkeypatch.setattr("dinit.posterior_conformance.verify_posterior", gives(report))
    assert code("verify", "--posterior", "--out", "new/folder/x.md") == 0
    assert Path("new/folder/x.md").read_text() == "# a table\n"
