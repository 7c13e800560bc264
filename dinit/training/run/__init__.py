"""Folder of a training run: checkpoints, logs, health page, progress, stopping."""
