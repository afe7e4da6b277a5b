"""What runs inside Triton. Each file is copied as `model.py`, so none imports anything of ours."""
