"""What a pipeline writes: image files, sheets, large sets, manifests, and their replay."""
