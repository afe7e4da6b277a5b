"""Semi-supervised training."""
