"""Image data sets, and the order in which training reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.data.arrays import NpzImages as NpzImages
    from dinit.data.base import DATASETS as DATASETS
    from dinit.data.base import ImageData as ImageData
    from dinit.data.digits import Digits as Digits
    from dinit.data.folder import ImageFolder as ImageFolder
    from dinit.data.glyphs import Glyphs as Glyphs
    from dinit.data.hf import HuggingFace as HuggingFace
    from dinit.data.idx import IdxImages as IdxImages
    from dinit.data.latents import Latents as Latents
    from dinit.data.order import epoch_order as epoch_order
    from dinit.data.order import sample_indices as sample_indices
    from dinit.data.order import sample_key as sample_key
    from dinit.data.pixels import from_uint8 as from_uint8
    from dinit.data.pixels import to_uint8 as to_uint8
    from dinit.data.webdataset import WebDataset as WebDataset
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
