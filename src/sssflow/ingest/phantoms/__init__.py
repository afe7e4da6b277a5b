"""Procedural scans in the layouts of real data sets: hearts (ACDC) and head CT (BHSD)."""
