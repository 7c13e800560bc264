"""Metrics: Fréchet distances, KID, precision and recall, class accuracy, memorisation, diversity."""
