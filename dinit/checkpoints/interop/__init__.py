"""Interoperation with diffusers: the training settings in a scheduler's config, networks as backbones."""
