"""Backbones, codecs and closed-form denoisers."""

if __name__ != "dinit.models":
    raise ImportError("import dinit.models, not models: a second name for one folder makes a second registry")

from dinit.compat import ensure_torchvision

ensure_torchvision()  # before diffusers, which imports torchvision
