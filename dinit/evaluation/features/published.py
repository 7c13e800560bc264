"""Published weights that metrics need: name, hash and address of each file. dinit downloads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedFile:
    """A published file of weights.

    Attributes:
        name: of the file.
        sha256: of its content, 64 digits.
        address: from which it can be downloaded.
        variable: environment variable that names the file on this disk.
    """

    name: str
    sha256: str
    address: str
    variable: str

    def missing(self, looked_for: str | Path | None, place: Path | None = None) -> str:
        """Sentence for an error: the file, where it belongs, and what there is without it.

        Args:
            looked_for: path that has no such file; None is that no path was given.
            place: where it is found without being named.
        """
        where = "no file was named" if looked_for is None else f"not at {looked_for}"
        there = f"put it at {place}, or name" if place is not None else "name"
        return (
            f"the weights {self.name} are not on this disk ({where}). Download {self.address} (sha256 "
            f"{self.sha256}), "
            f"{there} its path by the variable {self.variable} or the option weights=; dinit downloads nothing. "
            "Without them: `dinit classifier DATA` trains a classifier of your own classes in minutes, "
            "whose features `dinit evaluate` then uses; --metrics memorisation,pixels needs no features"
        )


INCEPTION = PublishedFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "DINIT_INCEPTION_WEIGHTS",
)
CLIP = PublishedFile(
    "ViT-L-14-336px.pt",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    "https://openaipublic.azureedge.net/clip/models/"
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
    "DINIT_CLIP_WEIGHTS",
)
DINOV2 = PublishedFile(
    "dinov2_vitl14_pretrain.pth",
    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    "DINIT_DINOV2_WEIGHTS",
)
