"""Loss terms, weightings by time, and distributions of training times."""
