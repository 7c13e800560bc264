"""How each published repository lays out its checkpoints: one file a family."""

from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, candidates, count, recognise

__all__ = ["LAYOUTS", "Layout", "Shapes", "candidates", "count", "recognise"]
