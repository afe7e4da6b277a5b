"""Metrics, intervals, pictures, report."""
