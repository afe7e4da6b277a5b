"""Coarse masks to boxes and points."""
