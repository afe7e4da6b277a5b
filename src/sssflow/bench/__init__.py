"""Benchmarks: protocols, variants, many runs side by side, one table."""
