"""Metrics of sets of images; each file registers some."""
