"""dinit: any backbone × any noise process × any sampler × any guidance."""

__version__ = "0.1.0"
