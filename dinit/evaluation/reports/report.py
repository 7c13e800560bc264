"""Report: scores with the protocol by which they were measured, and a row of real images as the baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from dinit.files import write_atomically

REAL = "real (train split)"
_SPREADS = ("_std", "_low", "_high")
_GOOD = {  # what a good score is, next to that of real images
    **dict.fromkeys(("fid", "sfid", "cafd", "fid_matched", "fid_infinity", "cmmd", "fdd"), "low; near real"),
    "kid": "near 0",
    "precision": "high: they look real",
    "recall": "high: all kinds are there",
    "inception_score": "high; near real",
    "class_accuracy": "high; near real",
    "cafd_classes": "all of them",
    **dict.fromkeys(("top1_histogram", "top5_histogram"), "near 0"),
    "copies": "low; near real",
    "nearer": "not far above real",
    "nearest_ratio": "not far below real",
    "brightness": "near 0",
    **dict.fromkeys(("contrast", "sharpness", "variety"), "near 1"),
}


@dataclass(frozen=True)
class Protocol:
    """Settings that must agree before two scores may be compared.

    Attributes:
        dataset: name of the data set, or of the file of reference statistics.
        reference: the reference set, with the fingerprint of its contents.
        features: name of the extractor.
        weights: hash of its weights.
        resize: how images reach its input size.
        statistics: which statistics the distances use.
        labels: how the samples' labels were drawn: "none", "balanced", "random" or "as given".
        sample_count: images of the model's row.
        real_count: images of the real row; 0 where there is none.
        reference_count: images of the reference set; 0 where unknown.
        kid_subset_size: see `Settings`, as the next four.
        kid_subsets: number of subsets for KID.
        isc_splits: number of splits for the Inception score.
        prc_neighborhood: k of precision and recall.
        seed: of subsets, shuffles and real images.
        torch_fidelity: its version.
        name: of the named protocol (dinit.evaluation.protocols); 'custom' for other features.
        isc_shuffle: whether images are shuffled before they are split.
        encoders: of metrics that have their own, with the hash of their weights.
    """

    dataset: str
    reference: str
    features: str
    weights: str
    resize: str
    statistics: str
    labels: str
    sample_count: int
    real_count: int
    reference_count: int
    kid_subset_size: int
    kid_subsets: int
    isc_splits: int
    prc_neighborhood: int
    seed: int
    torch_fidelity: str
    name: str = "custom"
    isc_shuffle: bool = True
    encoders: str = ""

    def differences(self, other: Protocol) -> list[str]:
        """A line "field: this against that" for each field in which `other` differs."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name}: {mine!r} against {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


@dataclass(frozen=True)
class Row:
    """Scores of one set of images against the reference.

    Attributes:
        name: of the set.
        count: number of images.
        metrics: scores by name, as in `Report.table`.
    """

    name: str
    count: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """Report of an evaluation.

    Attributes:
        protocol: by which the rows were measured.
        rows: the model's, and that of real images against the same reference; with a file of reference statistics
            there are no real images, and protocol.real_count is 0.
        notes: remarks on the scores, a line each.
        made_by: the call behind the model's row, where it is known.
        warnings: differences of the sets that make scores unreliable, a line each.
        curves: by metric, its value against the number of samples.
        evidence: by name, pictures and counts for the HTML page; not written to JSON.

    Raises:
        ValueError: no row of real images where the protocol has one.
    """

    protocol: Protocol
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    made_by: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    curves: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.protocol.real_count and not self.has_real:
            raise ValueError(f"a report needs the row {REAL!r} as well as the model's")

    @property
    def has_real(self) -> bool:
        """Whether there is a row of real images."""
        return REAL in [row.name for row in self.rows]

    @property
    def real(self) -> Row:
        """Row of real images. ValueError where there is none."""
        if not self.has_real:
            raise ValueError(f"this report has no row {REAL!r}: its reference is a file of statistics")
        return next(row for row in self.rows if row.name == REAL)

    @property
    def model(self) -> Row:
        """Row of the model."""
        return next(row for row in self.rows if row.name != REAL)

    def table(self) -> Table:
        """Table for the terminal: a row for each score, generated, of real images, and what is good."""
        title = f"{self.model.name}, protocol {self.protocol.name}, against {self.protocol.reference}"
        table = Table("metric", title=title)
        for row in self.rows:
            table.add_column("real against real" if row.name == REAL else "generated", justify="right")
        table.add_column("good")
        table.add_row("images", *(f"{row.count:,}" for row in self.rows), "")
        for key in self.figures():
            table.add_row(key.replace("_", " "), *(cell(row.metrics, key) for row in self.rows), self.good(key))
        return table

    def good(self, key: str) -> str:
        """What a good value of a score is, in a few words; empty where nothing is known.

        Args:
            key: name of the score, as in `figures`.
        """
        known = self.evidence.get("held-out accuracy")
        if key == "class_accuracy" and known:
            return f"near {known:.1%} or above"
        text = _GOOD.get(key, "")
        return text if self.has_real else text.removesuffix("; near real")

    def figures(self) -> list[str]:
        """Names of the scores that any row has, without their spreads and intervals."""
        return list(dict.fromkeys(key for row in self.rows for key in row.metrics if not key.endswith(_SPREADS)))

    def caption(self) -> list[str]:
        """Lines that belong with the table: protocol, warnings and notes."""
        p = self.protocol
        return [
            f"features {p.features} ({p.weights})",
            f"resize {p.resize}; labels {p.labels}; seed {p.seed}",
            f"{p.reference_count or 'an unknown number of'} reference images; torch-fidelity {p.torch_fidelity}",
            *([f"encoders {p.encoders}"] if p.encoders else []),
            *(f"warning: {line}" for line in self.warnings),
            *self.notes,
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `write_json` writes them."""
        return {
            "protocol": asdict(self.protocol),
            "rows": [{"name": r.name, "count": r.count, "metrics": dict(r.metrics)} for r in self.rows],
            "notes": list(self.notes),
            "made_by": dict(self.made_by),
            "warnings": list(self.warnings),
            "curves": dict(self.curves),
        }

    def write_json(self, path: str | Path) -> None:
        """Write the report to the JSON file `path`, whole or not at all. OSError where it cannot be written."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        write_atomically(Path(path), text.encode() + b"\n")

    @classmethod
    def read_json(cls, path: str | Path) -> Report:
        """Report from the JSON file `path` of `write_json`, without its evidence.

        Raises:
            ValueError: another file.
        """
        try:
            content = json.loads(Path(path).read_text())
            rows = tuple(Row(**row) for row in content["rows"])
            protocol = Protocol(**content["protocol"])
            more = {"warnings": tuple(content.get("warnings", ())), "curves": content.get("curves", {})}
            return cls(protocol, rows, tuple(content["notes"]), content["made_by"], **more)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a report that dinit wrote ({error})") from error


def compare(first: Report, second: Report) -> dict[str, float]:
    """Differences of two reports' scores.

    Args:
        first: a report.
        second: another one, of the same protocol.

    Returns:
        By name, the second model's score less the first's.

    Raises:
        ValueError: protocols that differ; the message has the fields.
    """
    differences = first.protocol.differences(second.protocol)
    if differences:
        raise ValueError(
            "scores of different protocols cannot be compared; measure both by one protocol. They differ in\n  "
            + "\n  ".join(differences)
        )
    ours, theirs = first.model.metrics, second.model.metrics
    return {key: theirs[key] - ours[key] for key in ours if key in theirs and not key.endswith(_SPREADS)}


def cell(metrics: Mapping[str, float], key: str) -> str:
    """Score as tables show it, with its spread or interval where it has one."""
    if key not in metrics:
        return "–"
    text = f"{metrics[key]:.4g}"
    if f"{key}_low" in metrics:
        return f"{text} [{metrics[key + '_low']:.4g}, {metrics[key + '_high']:.4g}]"
    return f"{text} ± {metrics[key + '_std']:.2g}" if f"{key}_std" in metrics else text
