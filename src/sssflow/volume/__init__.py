"""Volumes: grids, file formats, packed storage, intensity rules."""
