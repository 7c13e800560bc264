"""The same weights, better or cheaper: caches of features, edits of skips, stitched denoisers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.reuse.body import BlockCounts as BlockCounts
    from dinit.reuse.body import Body as Body
    from dinit.reuse.body import body_of as body_of
    from dinit.reuse.caches.base import CACHES as CACHES
    from dinit.reuse.caches.base import Cache as Cache
    from dinit.reuse.caches.deepcache import DeepCache as DeepCache
    from dinit.reuse.caches.delta import DeltaCache as DeltaCache
    from dinit.reuse.caches.encoder_reuse import EncoderReuse as EncoderReuse
    from dinit.reuse.caches.first_block import FirstBlockCache as FirstBlockCache
    from dinit.reuse.caches.taylor import TaylorCache as TaylorCache
    from dinit.reuse.edits.base import EDITS as EDITS
    from dinit.reuse.edits.base import Edit as Edit
    from dinit.reuse.edits.freeu import FreeU as FreeU
    from dinit.reuse.edits.skip_tuning import SkipTuning as SkipTuning
    from dinit.reuse.stitch import Stitched as Stitched
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
