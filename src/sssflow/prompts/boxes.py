"""Boxes and points of 2-D objects, in pixel indices: x is the column, y the row.

Axis letters: h rows, w columns. Boxes are (x0, y0, x1, y1) with both ends inside the object.
"""

from __future__ import annotations

import edt
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]


def bounding_box(mask_hw: Mask) -> Box:
    """Smallest box around the true pixels.

    Raises:
        ValueError: There is none.
    """
    (y0, x0), (y1, x1) = (index.tolist() for index in extent(mask_hw))
    return x0, y0, x1, y1


def widen(box_xyxy: Box, margin_px: int, size_hw: tuple[int, int]) -> Box:
    """The box with `margin_px` more on each side, clipped to the image."""
    x0, y0, x1, y1 = box_xyxy
    height, width = size_hw
    return (
        max(x0 - margin_px, 0),
        max(y0 - margin_px, 0),
        min(x1 + margin_px, width - 1),
        min(y1 + margin_px, height - 1),
    )


def interior_point(mask_hw: Mask) -> tuple[int, int]:
    """(x, y) of the pixel farthest from everything outside, so it always lies in the object.

    The centre of a box has no such promise: that of a ring lies in the hole.

    Raises:
        ValueError: The mask is empty.
    """
    y, x = deepest(mask_hw)
    return x, y


def deepest(mask: Mask) -> tuple[int, ...]:
    """Index of the pixel (or voxel: any number of axes) farthest from everything outside.

    Beyond the image counts as outside. Of several equally deep ones that nearest to the object's
    centre of mass is taken, of those the first in row order. Distances are in pixels of the grid.

    Raises:
        ValueError: The mask is empty.
    """
    low, high = extent(mask)
    crop = np.ascontiguousarray(mask[tuple(map(slice, low, high + 1))])
    # Squared distances are whole numbers, so equal depths compare equal in float32.
    depth = edt.edtsq(crop, black_border=True, parallel=1)
    candidates = np.argwhere(depth == depth.max())
    found = candidates[0]
    if len(candidates) > 1:
        found = _nearest_to_mean(candidates, np.argwhere(crop))
    return tuple((found + low).tolist())


def extent(mask: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last index of the true pixels along each axis, both inside the object.

    Raises:
        ValueError: There is none.
    """
    axes = range(mask.ndim)
    found = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    if found[0].size == 0:
        raise ValueError("an empty mask has no extent")
    return np.array([f[0] for f in found]), np.array([f[-1] for f in found])


def centroid(mask_hw: Mask) -> tuple[float, float]:
    """(x, y) of the centre of mass; may lie outside the object.

    Raises:
        ValueError: The mask is empty.
    """
    ys, xs = np.nonzero(mask_hw)
    if xs.size == 0:
        raise ValueError("an empty mask has no centroid")
    return int(xs.sum()) / xs.size, int(ys.sum()) / ys.size


def _nearest_to_mean(
    candidates_nd: NDArray[np.int64], inside_md: NDArray[np.int64]
) -> NDArray[np.int64]:
    # Python integers: m times the distance to the mean is exact, and does not overflow.
    total = [int(v) for v in inside_md.sum(axis=0)]
    squared = [
        sum((len(inside_md) * v - t) ** 2 for v, t in zip(index, total, strict=True))
        for index in candidates_nd.tolist()
    ]
    nearest: NDArray[np.int64] = candidates_nd[squared.index(min(squared))]
    return nearest
