"""Triton: model repository, local server, client, check, bench, publish."""
