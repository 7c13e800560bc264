"""`dinit verify --posterior`: exact methods pass, wrong ones show, and divergence and refusals are written down."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import dinit.posterior_conformance as conformance
from dinit.cli.app import app
from dinit.posterior_conformance import (
    Case,
    Outcome,
    PosteriorReport,
    posterior_methods,
    run_case,
    verify_posterior,
)

GAUSSIAN = Case("gaussian", "mask", 0.05, "oracle", "auto", "edm", 40, 128)


@pytest.fixture(scope="module")
def exact() -> Outcome:
    return run_case(replace(GAUSSIAN, method="exact", sampler=""))


def test_exact_samples(exact: Outcome) -> None:
    scores, ranks = exact.scores, exact.calibration
    assert scores is not None
    assert ranks is not None
    assert abs(scores.trace_ratio - 1) < 0.05
    assert abs(scores.white_trace - 1) < 0.05
    assert abs(scores.data - scores.data_exact) < 0.02
    assert scores.sw2 < 0.22
    assert abs(ranks.chi2 - 1) < 0.4
    assert abs(ranks.spread - 1) < 0.08
    assert exact.note == ""


def test_exact_methods_are_exact_and_others_are_not(exact: Outcome) -> None:
    """A Gaussian's posterior by the exact denoiser and by MMPS with full solves, and not by others."""
    oracle, full, dps = (
        run_case(replace(GAUSSIAN, method=method)) for method in ("oracle", conformance.FULL, "dps")
    )
    assert oracle.scores is not None
    assert full.scores is not None
    assert dps.scores is not None
    assert exact.scores is not None
    assert full.scores.sw2 == pytest.approx(oracle.scores.sw2, rel=1e-3)
    assert full.scores.sw2 < 1.15 * exact.scores.sw2
    assert dps.scores.sw2 > 2 * exact.scores.sw2
    assert PosteriorReport((exact, oracle)).passed
    wrong = replace(dps, case=oracle.case)
    report = PosteriorReport((exact, wrong))
    assert not report.passed
    assert report.failures() == [wrong]
    assert not PosteriorReport(()).passed


def test_the_mixture_shows_a_bias_in_the_weights() -> None:
    """MMPS takes x0 given x_t for a Gaussian; modes that the measurement cannot tell apart get wrong weights."""
    case = replace(GAUSSIAN, problem="mixture", operator="downscale", evaluations=20)
    oracle, full = run_case(case), run_case(replace(case, method="mmps:iterations=4"))
    assert oracle.scores is not None
    assert full.scores is not None
    assert oracle.scores.weight_err < 0.06
    assert full.scores.weight_err > 0.1


def test_what_diverges_or_is_refused_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    far = run_case(replace(GAUSSIAN, method="dps:zeta=1e4", sampler="ddpm", evaluations=10))
    assert far.note.startswith("diverged: values up to ")
    assert far.calibration is None
    refused = run_case(replace(GAUSSIAN, method="mmps:iterations=0"))
    assert refused.note.startswith("refused: ")
    assert refused.scores is None
    report = PosteriorReport((far, refused))
    assert "diverged" in report.markdown()
    table = report.table()
    assert table.row_count == 4  # and the problem, and operator and noise
    console = Console(width=80, file=io.StringIO())
    console.print(PosteriorReport((run_case(GAUSSIAN),)).table())
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in written
    assert GAUSSIAN.operator in written
    heading, rule, *rows = report.markdown().splitlines()
    assert len(rows) == 2
    assert {line.count("|") for line in (heading, rule, *rows)} == {heading.count("|")}


def test_every_method_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without names the runs are those of all posterior guidances, under both samplers, and posterior samplers."""
    monkeypatch.setattr(conformance, "run_case", Outcome)
    seen: list[tuple[int, int]] = []
    report = verify_posterior(progress=lambda done, total: seen.append((done, total)))
    assert {"mmps", "dps", "pigdm", "oracle", "exact", conformance.FULL} <= {o.case.method for o in report.outcomes}
    assert set(posterior_methods()) <= {o.case.method for o in report.outcomes}
    assert {o.case.sampler for o in report.outcomes if o.case.method == "mmps"} == {"auto", "ddpm"}
    assert seen[-1] == (len(report.outcomes), len(report.outcomes))
    assert not any(o.case.operator == "blur" and o.case.noise_std == 0 for o in report.outcomes)


def test_names_that_are_no_posterior_method() -> None:
    for name, advice in (("cfg", r" \(known: .*mmps"), ("mpms", "; did you mean 'mmps'")):
        with pytest.raises(ValueError, match=f"'{name}' is no posterior method{advice}"):
            verify_posterior([name])
    with pytest.raises(ValueError, match="unknown sampler"):
        verify_posterior(["mmps"], ["dpmm"])


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "PROBLEMS", ("gaussian",))
    monkeypatch.setattr(conformance, "OPERATOR_SPECS", {"mask": conformance.OPERATOR_SPECS["mask"]})
    monkeypatch.setattr(conformance, "NOISES", (0.05,))
    monkeypatch.setattr("dinit.cli.verify._cores", lambda: 1)
    out = tmp_path / "table.md"
    line = ["verify", "--posterior", "--method", "ddnm+", "--sampler", "auto", "--out", str(out)]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "3 runs, 0 diverged, 0 refused" in result.output
    assert [row.split("|")[4].strip() for row in out.read_text().splitlines()[2:]] == ["exact", "oracle", "ddnm+"]
    assert CliRunner().invoke(app, ["verify", "--method", "mmps"]).exit_code != 0
    assert math.isfinite(float(out.read_text().splitlines()[-1].split("|")[6]))
