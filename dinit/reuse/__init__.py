"""The same weights, better or cheaper: caches of features, hourglass edits, stitching, quantization."""
