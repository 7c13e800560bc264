"""Recipes: the typed model, its YAML files and its checks."""
