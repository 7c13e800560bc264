"""How good are the samples: feature extractors, metrics, reports with their protocol."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "DigitsClassifier": "classifier",
    "classify": "classifier",
    "train_classifier": "classifier",
    "EXTRACTORS": "features",
    "METRICS": "metrics",
    "DEFAULT_METRICS": "metrics",
    "PROTOCOLS": "protocols",
    "Extras": "evaluate",
    "evaluate_images": "evaluate",
    "Protocol": "report",
    "Report": "report",
    "Row": "report",
    "compare": "report",
}


def __getattr__(name: str) -> Any:
    # On demand, so that `python -m dinit.evaluation.classifier` does not import itself twice.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
