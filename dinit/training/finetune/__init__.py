"""Fine-tuning: transfer of a pretrained pipeline to other classes, adapters."""
