"""Image data sets: the base class, images in [-1, 1] with integer labels and a fingerprint for manifests."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dinit.data.order import hash_words, sample_indices
from dinit.data.pixels import to_uint8
from dinit.data.sources import advise
from dinit.data.value_range import BYTES, NETWORK, Range, to_network
from dinit.registry import Registry

DATASETS: Registry[type[ImageData]] = Registry("data set", "dinit.data", advise=advise)


class ImageData(Dataset[tuple[Tensor, int]]):
    """Base class of data sets, map-style. A subclass sets the attributes and implements `image` and `fingerprint`.

    Attributes:
        labels: (N,) int64, 0 .. num_classes - 1.
        num_classes: number of classes; 0 is unconditional, and then every label is 0.
        class_names: one for each class.
        image_size: height = width in pixels.
        channels: 1 or 3 (or what the file has).
        horizontal_flip: whether `sample` mirrors about half of the images.
        features: name of the feature extractor for metrics on such images, by default.
    """

    source_option: ClassVar[str] = "path"  # of `check_arguments`

    labels: NDArray[np.int64]
    num_classes: int
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    horizontal_flip: bool = False
    features: str = "inception-v3"

    def image(self, index: int) -> Tensor:
        """Image at an index, (C, H, W) float32 in [-1, 1], without augmentation."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Hexadecimal hash of the contents and of the options that change the images."""
        raise NotImplementedError

    @property
    def augments(self) -> bool:
        """Whether `sample` with a key can differ from `image`."""
        return self.horizontal_flip

    @property
    def picture_channels(self) -> int:
        """Channels of the pictures that a network trained on this data generates."""
        return self.channels

    def pipeline_parts(self) -> dict[str, Any]:
        """Further arguments of the Pipeline of a network trained on this data; none for pixels."""
        return {}

    def indices(self, seed: int, start: int, count: int) -> list[int]:
        """Data-set indices of the samples start .. start + count - 1 of a run; every epoch reads each image once.

        A pure function, so that a run resumes at any position.

        Args:
            seed: of the run.
            start: position of the first sample, counted over all epochs.
            count: number of samples.

        Returns:
            `count` indices.

        Raises:
            ValueError: a negative start or count.
        """
        return sample_indices(seed, start, count, len(self))

    def sample(self, index: int, key: int | None = None) -> tuple[Tensor, int]:
        """Image and label, augmented by a key.

        A pure function: the same (index, key) gives the same tensor in every process.

        Args:
            index: 0 .. N - 1.
            key: decides the augmentation; None is without augmentation.

        Returns:
            Image (C, H, W) float32 in [-1, 1], and its label.

        Raises:
            IndexError: an index past the end.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        image = self.image(index)
        if self.horizontal_flip and key is not None and hash_words(key, index) & 1:
            image = image.flip(-1)
        return image, int(self.labels[index])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.sample(index)

    def __len__(self) -> int:
        return len(self.labels)

    def uint8_images(self, indices: list[int] | None = None) -> Tensor:
        """Images for metrics, (N, C, H, W) uint8; all of them, or those at `indices`."""
        chosen = range(len(self)) if indices is None else indices
        return torch.stack([to_uint8(self.image(int(i))) for i in chosen])


class InMemory(ImageData):
    """Data set held in one array (N, C, H, W): uint8 in 0 .. 255, float in [-1, 1], or numbers of another range."""

    def __init__(
        self,
        images: NDArray,
        labels: NDArray[np.int64],
        class_names: tuple[str, ...],
        horizontal_flip: bool,
        values: Range | None = None,
    ) -> None:
        self._images = images
        self._usual = BYTES if images.dtype == np.uint8 else NETWORK
        self._values = self._usual if values is None else values
        self.labels = labels
        self.class_names = class_names
        self.num_classes = len(class_names)
        self.channels, self.image_size = int(images.shape[1]), int(images.shape[2])
        self.horizontal_flip = horizontal_flip

    def image(self, index: int) -> Tensor:
        return torch.from_numpy(to_network(self._images[index], self._values))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self._images.shape} {self._images.dtype} {self.horizontal_flip}".encode())
        if self._values != self._usual:
            digest.update(repr(self._values).encode())
        for start in range(0, len(self._images), 4096):  # in pieces: the array may be larger than memory
            digest.update(np.ascontiguousarray(self._images[start : start + 4096]).tobytes())
        digest.update(self.labels.tobytes())
        digest.update("\0".join(self.class_names).encode())
        return digest.hexdigest()[:32]
