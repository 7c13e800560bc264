"""Posterior samplers, which own their loop."""
