"""From a folder of scans to a verified, split, packed dataset."""
