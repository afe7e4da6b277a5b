"""One method per file, one signature."""
