"""Semi-supervised medical image segmentation with SAM-2, from scans to a served model."""

__version__ = "0.1.0"
