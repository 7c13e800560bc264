"""Conversion and export of weights, and encoding of a data set to latents."""
