"""Run the compiled pipeline."""
