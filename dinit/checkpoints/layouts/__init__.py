"""Layouts of published checkpoints: one file for each family."""

from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, candidates, count, recognise

__all__ = ["LAYOUTS", "Layout", "Shapes", "candidates", "count", "recognise"]
