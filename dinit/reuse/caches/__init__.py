"""Caches: features of one evaluation that take the place of those of later ones."""
