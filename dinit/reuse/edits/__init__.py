"""Edits of a trained network's features or convolutions while it samples: its weights stay as they are."""
