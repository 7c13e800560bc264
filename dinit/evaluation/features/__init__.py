"""Feature extractors, by whose features two sets of images are compared."""
