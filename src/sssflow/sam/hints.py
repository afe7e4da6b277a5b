"""Prompts drawn into SAM-2's mask input: what lets a model of 4 M parameters learn on a laptop.

SAM-2 takes a box or point as tokens whose meaning must be learnt from random Fourier codes, which
costs many millions of examples. Nano SAM-2 gets the same prompts a second time as a picture,
through the mask input that SAM-2 has anyway: inside the box, outside the box, a bump at each
point. With the grey values of the slice the inside of the box says more: how like the points a
place is. On a tracked slice the picture is the mask of the slice before, and where the grey values
are those that it covered there. Official sizes never get hints.

Letters: n objects, p points, y rows, x columns of the mask grid (input / 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sssflow.sam.build import MASK_STRIDE

Floats = NDArray[np.float32]

_INSIDE, _OUTSIDE, _UNKNOWN = 2.0, -6.0, -1.0
_BUMP, _BUMP_CELLS = 8.0, 1.0
_LIMIT = 16.0
_LIKE, _UNLIKE_GREY = 4.0, 0.25


def draw_hints(
    points_np2: Floats | None,
    labels_np: NDArray[np.integer] | None,
    masks_nyx: Floats | None,
    input_size: int,
    grey_nyx: Floats | None = None,
) -> Floats:
    """Mask input (n, y, x) in logits for n objects.

    Args:
        points_np2: (x, y) in input coordinates, corners of a box first; None: no points.
        labels_np: 1 inside, 0 outside, 2 and 3 the corners of a box.
        masks_nyx: Logits of a rough mask; it then takes the place of the box.
        input_size: Side of the input; the grid has a quarter of it.
        grey_nyx: The slice of each object on the grid, in [0, 1]; None: hints without it.
    """
    cells = input_size // MASK_STRIDE
    if points_np2 is None or labels_np is None:
        if masks_nyx is None:
            raise ValueError("hints need points or masks")
        return np.clip(masks_nyx, -_LIMIT, _LIMIT).astype(np.float32)
    drawn = np.full((len(points_np2), cells, cells), _UNKNOWN, np.float32)
    for index, (points, labels) in enumerate(zip(points_np2, labels_np, strict=True)):
        at = (points + 0.5) / MASK_STRIDE
        if masks_nyx is not None:
            drawn[index] = np.clip(masks_nyx[index], -_LIMIT, _LIMIT)
        elif (labels == 2).any():
            (x0, y0), (x1, y1) = at[labels == 2][0], at[labels == 3][0]
            inside = np.outer(_covered(y0, y1, cells), _covered(x0, x1, cells))
            full: float | Floats = _INSIDE
            if grey_nyx is not None and (labels == 1).any():
                full = _likeness(grey_nyx[index], at[labels == 1])
            drawn[index] = _OUTSIDE + (full - _OUTSIDE) * inside
        elif grey_nyx is not None and (labels == 1).any():
            drawn[index] = 0.5 * _likeness(grey_nyx[index], at[labels == 1]) - 2
        for (x, y), label in zip(at[labels < 2], labels[labels < 2], strict=True):
            bump = np.outer(_near(y, cells), _near(x, cells))
            drawn[index] += (_BUMP if label == 1 else -_BUMP) * bump
    return np.clip(drawn, -_LIMIT, _LIMIT)


def carried_hint(
    logits_n1yx: Floats,
    grey_before_nyx: Floats | None = None,
    grey_now_nyx: Floats | None = None,
) -> Floats:
    """Mask input (n, 1, y, x) of a tracked slice: the logits of the slice before, in bounds.

    With the grey values of both slices, the softened mask is moved up where the slice looks like
    what the mask covered before, and down where it does not.
    """
    if grey_before_nyx is None or grey_now_nyx is None:
        return np.clip(logits_n1yx, -_LIMIT, _LIMIT).astype(np.float32)
    hints = np.empty_like(logits_n1yx, dtype=np.float32)
    pairs = zip(logits_n1yx[:, 0], grey_before_nyx, grey_now_nyx, strict=True)
    for index, (logits, before, now) in enumerate(pairs):
        weight = 1 / (1 + np.exp(-np.clip(logits, -_LIMIT, _LIMIT)))
        mean = float((weight * before).sum() / max(float(weight.sum()), 1e-6))
        soft = ndimage.uniform_filter(np.clip(logits, -6, 6), 3, mode="nearest")
        hints[index, 0] = soft + 0.75 * _like(np.abs(now - mean))
    return np.clip(hints, -_LIMIT, _LIMIT)


def _likeness(grey_yx: Floats, points_at: Floats) -> Floats:
    """Logits: how like the nearest of the points' grey values each cell is."""
    cells = len(grey_yx)
    best: Floats = np.full_like(grey_yx, np.inf)
    for x, y in points_at:
        weight = np.outer(_near(y, cells, 0.6), _near(x, cells, 0.6))
        mean = float((weight * grey_yx).sum() / max(float(weight.sum()), 1e-6))
        best = np.minimum(best, np.abs(grey_yx - np.float32(mean)))
    return _like(best)


def _like(difference_yx: Floats) -> Floats:
    share = np.clip(difference_yx / _UNLIKE_GREY, 0, 1)
    return np.asarray(_LIKE * (1 - 2 * share), dtype=np.float32)


def _covered(low: float, high: float, cells: int) -> Floats:
    """Share of each cell [i, i + 1] that the interval covers."""
    edges = np.arange(cells + 1, dtype=np.float32)
    covered = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.asarray(np.clip(covered, 0, 1), dtype=np.float32)


def _near(at: float, cells: int, reach_cells: float = _BUMP_CELLS) -> Floats:
    distance = np.arange(cells, dtype=np.float32) + 0.5 - at
    return np.asarray(np.exp(-0.5 * (distance / reach_cells) ** 2), dtype=np.float32)
