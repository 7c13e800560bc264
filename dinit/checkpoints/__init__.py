"""Reading published checkpoints."""
