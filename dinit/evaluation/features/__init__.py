"""Feature extractors: what an image is turned into before two sets of images are compared."""
