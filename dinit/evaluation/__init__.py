"""How good are the samples: feature extractors, metrics, reports with their protocol."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "DigitsClassifier": "features.digits_classifier",
    "classify": "features.digits_classifier",
    "train_classifier": "features.digits_classifier",
    "EXTRACTORS": "features.base",
    "METRICS": "metrics.base",
    "DEFAULT_METRICS": "metrics.base",
    "PROTOCOLS": "protocols",
    "Extras": "evaluate",
    "evaluate_images": "evaluate",
    "Protocol": "reports.report",
    "Report": "reports.report",
    "Row": "reports.report",
    "compare": "reports.report",
}


def __getattr__(name: str) -> Any:
    # On demand, so that `python -m dinit.evaluation.features.digits_classifier` does not import itself twice.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
