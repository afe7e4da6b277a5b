"""The finished model on new scans: NIfTI in, NIfTI out."""
