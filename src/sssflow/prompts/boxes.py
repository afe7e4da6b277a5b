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
    rows = np.flatnonzero(mask_hw.any(axis=1))
    columns = np.flatnonzero(mask_hw.any(axis=0))
    if rows.size == 0:
        raise ValueError("an empty mask has no bounding box")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


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

    Beyond the image counts as outside. Of several equally deep pixels the one nearest to the
    object's centre of mass is taken, of those the first in row order. The centre of a box has no
    such promise: that of a ring lies in the hole.

    Raises:
        ValueError: The mask is empty.
    """
    x0, y0, x1, y1 = bounding_box(mask_hw)
    crop_hw = np.ascontiguousarray(mask_hw[y0 : y1 + 1, x0 : x1 + 1])
    # Squared distances are whole numbers, so equal depths compare equal in float32.
    depth_hw = edt.edtsq(crop_hw, black_border=True, parallel=1)
    ys, xs = np.nonzero(depth_hw == depth_hw.max())
    x, y = xs[0], ys[0]
    if xs.size > 1:
        all_ys, all_xs = np.nonzero(crop_hw)
        x, y = _nearest_to_mean(xs, ys, all_xs, all_ys)
    return int(x) + x0, int(y) + y0


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
    xs: NDArray[np.intp],
    ys: NDArray[np.intp],
    all_xs: NDArray[np.intp],
    all_ys: NDArray[np.intp],
) -> tuple[int, int]:
    # Python integers: n times the distance to the mean is exact, and does not overflow.
    count, sum_x, sum_y = all_xs.size, int(all_xs.sum()), int(all_ys.sum())
    candidates = zip(xs.tolist(), ys.tolist(), strict=True)
    x, y = min(
        candidates,
        key=lambda xy: (count * xy[0] - sum_x) ** 2 + (count * xy[1] - sum_y) ** 2,
    )
    return x, y
