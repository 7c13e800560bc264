import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from dinit.evaluation.reports.report import REAL, Protocol, Report, Row, compare
from dinit.files import write_atomically

PROTOCOL = Protocol(
    dataset="digits",
    reference="digits, test split, abc",
    features="digits-classifier",
    weights="0123",
    resize="none",
    statistics="mean and covariance",
    labels="balanced",
    sample_count=100,
    real_count=100,
    reference_count=359,
    kid_subset_size=50,
    kid_subsets=100,
    isc_splits=1,
    prc_neighborhood=3,
    seed=0,
    torch_fidelity="0.4.0",
)


def report(fid: float, **changed: object) -> Report:
    rows = (Row("mine", 100, {"fid": fid, "kid": 0.25, "kid_std": 0.01}), Row(REAL, 100, {"fid": 0.5}))
    return Report(replace(PROTOCOL, **changed), rows, ("a note",), {"steps": 5})  # pyright: ignore


def test_scores_of_one_protocol_are_compared() -> None:
    assert compare(report(3.0), report(2.25)) == {"fid": -0.75, "kid": 0.0}


@pytest.mark.parametrize(
    "changed", [{"sample_count": 99}, {"features": "inception-v3"}, {"weights": "9"}, {"resize": "other"}]
)
def test_scores_of_two_protocols_are_not(changed: dict) -> None:
    (name, value), mine = next(iter(changed.items())), report(1.0)
    with pytest.raises(ValueError, match=f"{name}: {getattr(PROTOCOL, name)!r} against {value!r}"):
        compare(mine, report(1.0, **changed))


def test_a_report_without_the_real_row_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="needs the row"):
        Report(PROTOCOL, (Row("mine", 100, {}),))


def test_json_goes_round(tmp_path: Path) -> None:
    report(1.5).write_json(tmp_path / "report.json")
    assert Report.read_json(tmp_path / "report.json") == report(1.5)
    assert json.loads((tmp_path / "report.json").read_text())["rows"][1]["name"] == REAL
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    (tmp_path / "other.json").write_text('{"rows": []}')
    for name in ("other.json", "none.json"):
        with pytest.raises(ValueError, match="not a report"):
            Report.read_json(tmp_path / name)


def test_the_table_shows_both_rows_counts_protocol_and_notes() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report(1.25).table())
    text = console.export_text()
    for part in ("mine", "real against real", "1.25", "0.25 ± 0.01", "–", "100", "low; near real"):
        assert part in text
    lines = "\n".join(report(1.25).caption())
    for part in ("a note", "digits-classifier", "359 reference images"):
        assert part in lines


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
