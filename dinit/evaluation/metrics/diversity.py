"""Diversity of generated glyphs: the metric on their known factors."""

from __future__ import annotations

import torch

from dinit.evaluation.metrics.base import METRICS, MetricInputs, NotMeasured
from dinit.evaluation.metrics.factors import diversity


@METRICS.register("diversity")
def factor_diversity(inputs: MetricInputs) -> dict[str, float]:
    """Entropy and coverage of each known factor within classes, for glyphs (hue, font, rotation, …).

    NAME_entropy: as a share of the maximum, 1 is uniform. NAME_coverage: share of its bins that have an image.
    factor_entropy, factor_coverage: means over the factors. expected_coverage: coverage by as many images with
    uniform factors.
    """
    samples = inputs.samples
    reader = inputs.extractor.factor_reader()
    if reader is None:
        raise NotMeasured("factors are known for glyphs alone; take the features 'glyphs-classifier'")
    if samples.images is None:
        raise NotMeasured("factors are read from images")
    labels = None if samples.labels is None else torch.from_numpy(samples.labels)
    found = diversity(samples.images[0 : samples.count], labels, reader)
    inputs.evidence["factors"] = found
    scores = {}
    for name, spread in found.items():
        scores[f"{name}_entropy"], scores[f"{name}_coverage"] = spread.entropy, spread.coverage
    scores["factor_entropy"] = sum(s.entropy for s in found.values()) / len(found)
    scores["factor_coverage"] = sum(s.coverage for s in found.values()) / len(found)
    scores["expected_coverage"] = sum(s.expected_coverage for s in found.values()) / len(found)
    return scores
