"""Readers of known folder layouts, one per file."""
