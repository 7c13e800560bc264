"""A run's folder: checkpoints, logs, health page, progress, stopping."""
