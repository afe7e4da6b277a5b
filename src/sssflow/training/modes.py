"""Layers that compute as in training while the network around them does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def training_mode(layers: Sequence[nn.Module]) -> Iterator[None]:
    """These layers are in training mode inside; afterwards each is in the mode it was in."""
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer.train(mode)
