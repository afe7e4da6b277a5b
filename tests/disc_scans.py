"""Scans of a disc (class 1) inside a ring (class 2), small enough to train on in a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.dataset import Grid

SHAPE = (3, 40, 36)
IDENTITY = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
GRID = Grid(shape_shw=SHAPE, spacing_shw_mm=(1.0, 1.0, 1.0), affine_ras=IDENTITY)
CLASS_NAMES = ("background", "disc", "ring")


def draw(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """An image and its label, both of `SHAPE`; the disc moves by a column from slice to slice."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    label = np.zeros(SHAPE, np.uint8)
    centre = rng.uniform(15, 21, 2)
    for i in range(SHAPE[0]):
        distance = np.hypot(rows - centre[0], columns - centre[1] - i)
        label[i][distance < 9] = 2
        label[i][distance < 5] = 1
    image = np.array([0.1, 0.9, 0.5])[label] + rng.normal(0, 0.05, SHAPE)
    return image.astype(np.float32), label
