"""Named protocols: the settings that scores of different papers must share to be comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dinit.evaluation.metrics.base import Settings
from dinit.registry import suggest

CUSTOM, NONE = "custom", "none"
OF_CLASSIFIER = "classifier-"  # followed by the hash of a classifier: scores of two of them are never compared


@dataclass(frozen=True)
class NamedProtocol:
    """Protocol under a name, by which scores are measured.

    Attributes:
        name: as `protocol=` takes it.
        features: name of the extractor, which fixes the resize.
        source: where the protocol comes from.
        labels: how classes are drawn for a pipeline: "balanced" (equal counts, up to one) or "random" (uniformly,
            by the seed).
        isc_split_size: images of a split of the Inception score, unshuffled; None is torch-fidelity's 10 shuffled
            splits.
        samples: number of samples that published scores are measured on; 0 where none are published.
    """

    name: str
    features: str
    source: str
    labels: str = "balanced"
    isc_split_size: int | None = None
    samples: int = 0

    def settings(self, counts: Sequence[int], samples: int, seed: int) -> Settings:
        """Settings of the metrics for sets of these sizes.

        Args:
            counts: images of every set that has features.
            samples: images of the model's set.
            seed: of subsets and shuffles.
        """
        usual = Settings.for_counts(counts, seed)
        if self.isc_split_size is None:
            return usual
        splits = max(1, -(-samples // self.isc_split_size))
        return replace(usual, isc_splits=splits, isc_shuffle=False)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        NamedProtocol("digits", "digits-classifier", "dinit's own, for 8×8 digits"),
        NamedProtocol("glyphs", "glyphs-classifier", "dinit's own, for rendered glyphs"),
        NamedProtocol("torch-fidelity", "inception-v3", "torch-fidelity (Obukhov et al. 2020)", samples=50_000),
        NamedProtocol(
            "adm", "inception-v3", "the evaluator of Dhariwal & Nichol 2021", "random", 5000, samples=50_000
        ),
        NamedProtocol("clean", "inception-v3-clean", "clean-fid (Parmar et al. 2022)", samples=50_000),
    )
}


def named_protocol(name: str) -> NamedProtocol:
    """Protocol by its name. ValueError for an unknown one, with the nearest."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}{suggest(name, list(PROTOCOLS))}")
    return PROTOCOLS[name]


def choose_protocol(name: str | None, features: str | None, data_features: str | None) -> NamedProtocol:
    """Protocol by its name, else the first that uses the features given, else those of the data set.

    Features that no protocol uses give a protocol named 'custom'. ValueError where name and features contradict.
    """
    if name is not None:
        found = _of_classifier(name) if name.startswith(OF_CLASSIFIER) else named_protocol(name)
        if features not in (None, found.features):
            raise ValueError(
                f"the protocol {name!r} uses the features {found.features!r}, got {features!r}; leave one of the "
                "two out"
            )
        return found
    wanted = features or data_features or "inception-v3"
    found = next((one for one in PROTOCOLS.values() if one.features == wanted), None)
    if wanted.startswith(OF_CLASSIFIER):
        return _of_classifier(wanted)
    return found or NamedProtocol(NONE if wanted == NONE else CUSTOM, wanted, "given features")


def _of_classifier(name: str) -> NamedProtocol:
    return NamedProtocol(name, name, "a classifier of these classes, by `dinit classifier`")
