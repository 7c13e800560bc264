"""Output files of a pipeline: images, sheets, large sets, manifests, and their replay."""
