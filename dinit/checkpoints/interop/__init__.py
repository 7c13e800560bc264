"""Trained diffusers models read as they are: what their scheduler says, and their networks as backbones."""
