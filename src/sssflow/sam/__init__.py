"""SAM-2 as a promptable model and as a network."""
