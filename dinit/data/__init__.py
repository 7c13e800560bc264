"""Data sets of images, and the order in which training reads them."""

from dinit.data.base import DATASETS, ImageData
from dinit.data.order import IndexStream, epoch_order, sample_indices, sample_key
from dinit.data.pixels import from_uint8, to_uint8

__all__ = [
    "DATASETS",
    "ImageData",
    "IndexStream",
    "epoch_order",
    "from_uint8",
    "sample_indices",
    "sample_key",
    "to_uint8",
]
