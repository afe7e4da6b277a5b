"""KFP components: thin wrappers over the stages of `sssflow`."""

BASE_IMAGE = "sssflow-python-runtime:set-when-submitted"
"""Placeholder of the image reference in every compiled component.

Submitting a pipeline replaces it by an image digest; running locally ignores it.
"""
