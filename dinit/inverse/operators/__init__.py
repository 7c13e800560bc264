"""Operators of measurements, a file each kind."""
