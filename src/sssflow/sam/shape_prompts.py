"""Prompts for training, drawn from known masks: boxes, points and degraded masks.

Coordinates are input pixel indices (x, y): pixel i covers [i - 0.5, i + 0.5], so that the box of a
mask runs from its first index - 0.5 to its last index + 0.5.
Letters: n objects, p points, y rows, x columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sssflow.sam.shapes import Floats, Random, linear_matrix

Masks = NDArray[np.bool_]

KINDS = ("box", "box_point", "box_points", "point", "points", "mask", "mask_box_point")
KIND_SHARES = (0.22, 0.38, 0.1, 0.07, 0.08, 0.07, 0.08)


@dataclass(frozen=True)
class DrawnPrompts:
    """Prompts of n objects with the same number of points; None: no points, or no mask."""

    points_np2: Floats | None
    labels_np: NDArray[np.int32] | None
    mask_n1yx: Floats | None


def draw_prompts(rng: Random, masks_nyx: Masks, kind: str) -> DrawnPrompts:
    """Prompts of one kind for every mask; each mask must hold at least one pixel."""
    points, labels, dense = [], [], []
    for mask in masks_nyx:
        at: list[tuple[float, float]] = []
        label: list[int] = []
        if "box" in kind:
            at += _jittered_box(rng, mask)
            label += [2, 3]
        inside, outside = _point_counts(kind)
        at += [_inner_point(rng, mask, deepest=i == 0) for i in range(inside)]
        at += [_outer_point(rng, mask) for _ in range(outside)]
        label += [1] * inside + [0] * outside
        points.append(at)
        labels.append(label)
        if "mask" in kind:
            dense.append(_degraded(rng, mask))
    return DrawnPrompts(
        np.asarray(points, np.float32) if labels[0] else None,
        np.asarray(labels, np.int32) if labels[0] else None,
        np.stack(dense)[:, None] if dense else None,
    )


def correction(rng: Random, found_nyx: Masks, masks_nyx: Masks) -> tuple[Floats, NDArray[np.int32]]:
    """One click per object on what was missed (label 1) or wrongly found (label 0)."""
    points, labels = [], []
    for found, mask in zip(found_nyx, masks_nyx, strict=True):
        missed, wrong = mask & ~found, found & ~mask
        use_missed = missed.sum() >= wrong.sum()
        region = missed if use_missed else wrong
        if not region.any():
            region, use_missed = mask, True
        points.append([_inner_point(rng, region, deepest=True)])
        labels.append([int(use_missed)])
    return np.asarray(points, np.float32), np.asarray(labels, np.int32)


def _point_counts(kind: str) -> tuple[int, int]:
    counts = {"box_points": (1, 1), "points": (2, 1), "box": (0, 0), "mask": (0, 0)}
    return counts.get(kind, (1, 0))


def _jittered_box(rng: Random, mask_yx: Masks) -> list[tuple[float, float]]:
    rows = np.flatnonzero(mask_yx.any(axis=1))
    columns = np.flatnonzero(mask_yx.any(axis=0))
    x0, x1 = columns[0] - 0.5, columns[-1] + 0.5
    y0, y1 = rows[0] - 0.5, rows[-1] + 0.5
    strength = rng.choice([0.0, 0.03, 0.1], p=[0.3, 0.4, 0.3])
    dx, dy = rng.normal(0, strength, (2, 2)).clip(-0.25, 0.25) * [[x1 - x0], [y1 - y0]]
    low, high = -0.5, mask_yx.shape[0] - 0.5
    return [
        (float(np.clip(x0 + dx[0], low, high)), float(np.clip(y0 + dy[0], low, high))),
        (float(np.clip(x1 + dx[1], low, high)), float(np.clip(y1 + dy[1], low, high))),
    ]


def _inner_point(rng: Random, mask_yx: Masks, *, deepest: bool) -> tuple[float, float]:
    if deepest and rng.uniform() < 0.6:
        rows, columns = np.flatnonzero(mask_yx.any(axis=1)), np.flatnonzero(mask_yx.any(axis=0))
        part = mask_yx[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        depth = ndimage.distance_transform_cdt(np.pad(part, 1), metric="chessboard")
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        return float(x - 1 + columns[0]), float(y - 1 + rows[0])
    ys, xs = np.nonzero(mask_yx)
    i = int(rng.integers(len(ys)))
    return float(xs[i]), float(ys[i])


def _outer_point(rng: Random, mask_yx: Masks) -> tuple[float, float]:
    """A pixel outside the mask; mostly inside its box, where it says most."""
    rows, columns = np.flatnonzero(mask_yx.any(axis=1)), np.flatnonzero(mask_yx.any(axis=0))
    free = ~mask_yx
    if rng.uniform() < 0.8:
        near = np.zeros_like(mask_yx)
        near[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        free = free & near if (free & near).any() else free
    ys, xs = np.nonzero(free)
    i = int(rng.integers(len(ys)))
    return float(xs[i]), float(ys[i])


def _degraded(rng: Random, mask_yx: Masks) -> Floats:
    """Logits at a quarter of the size of a mask as a weak model would draw it."""
    size = mask_yx.shape[0]
    shift = tuple(int(v) for v in rng.integers(-size // 40, size // 40 + 1, 2))
    moved = np.roll(mask_yx, shift, axis=(0, 1)).astype(np.float32)
    small = linear_matrix(size // 4, size)
    soft = small @ moved @ small.T
    cells = int(rng.integers(4, 12))
    grow = linear_matrix(size // 4, cells)
    noise = grow @ rng.standard_normal((cells, cells)).astype(np.float32) @ grow.T
    blur = linear_matrix(size // 4, size // 8) @ linear_matrix(size // 8, size // 4)
    soft = blur @ soft @ blur.T + noise * np.float32(rng.uniform(0, 0.25))
    return np.asarray((soft - 0.5) * rng.uniform(6, 20), dtype=np.float32)
