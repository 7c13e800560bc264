"""Layers that two or more backbone families share."""
