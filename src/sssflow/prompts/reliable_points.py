"""Reliable prompts: clicks, a box or a rough mask from where a specialist is sure of itself.

The specialist's prediction says where an object is, its uncertainty says where that is believed:
positive clicks lie inside the confident foreground, negative ones in the confident background near
the object. The first click is positive always, and is the deepest pixel of the object: the first
click on an object that a promptable model has not segmented yet says where it is.

Sources: SemiSAM (arXiv 2312.06316), points from low-uncertainty regions; UA-MT (MICCAI 2019) for
the set {entropy < kappa ln 2}. Any number of axes: (row, column), or (slice, row, column).
Letters: p points, d axes in array order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray

from sssflow.prompts.boxes import deepest, extent
from sssflow.prompts.config import ReliableConfig

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Random = np.random.Generator


@dataclass(frozen=True)
class ReliablePrompt:
    """What prompts one object; index coordinates in array order.

    Attributes:
        points_pd: Positive clicks first, the deepest pixel before all.
        labels_p: 1 inside, 0 outside.
        box_2d: First and last index of the largest confident piece along each axis, inclusive, with
            the margin.
        margin_px: What the box has more on each side, where the image goes on.
        support: The largest confident piece itself.
    """

    points_pd: Ints
    labels_p: Ints
    box_2d: Ints
    margin_px: int
    support: Mask


def reliable_prompt(
    predicted: Mask, reliable: Mask, config: ReliableConfig, rng: Random
) -> ReliablePrompt | None:
    """Prompts of one object, or None where nothing is worth a prompt.

    None if the specialist does not see the object, if fewer than `min_pixels` of it are confident,
    or if it claims more than `max_share` of the image (a class that runs away is not fed further).

    Args:
        predicted: Where the specialist sees the object.
        reliable: Where its uncertainty is below the limit; same shape.
        config: Settings.
        rng: Source of all but the first click.
    """
    confident = predicted & reliable
    area = int(np.count_nonzero(confident))
    if area < config.min_pixels or np.count_nonzero(predicted) > config.max_share * predicted.size:
        return None
    support = largest_piece(confident)
    first = np.array([deepest(support)], np.int64)
    inside = confident.copy()
    inside[tuple(first[0])] = False
    near = _around(predicted, config.margin_share) & ~predicted & reliable
    positive = np.concatenate([first, _drawn(inside, config.positive_points - 1, rng)])
    negative = _drawn(near, config.negative_points, rng)
    low, high = extent(support)
    margin = math.ceil(config.box_margin_share * int((high - low + 1).max()))
    last = np.array(support.shape) - 1
    return ReliablePrompt(
        points_pd=np.concatenate([positive, negative]),
        labels_p=np.repeat(np.array([1, 0], np.int64), [len(positive), len(negative)]),
        box_2d=np.stack([np.maximum(low - margin, 0), np.minimum(high + margin, last)]),
        margin_px=margin,
        support=support,
    )


def largest_piece(mask: Mask) -> Mask:
    """The largest component, diagonal neighbours included; of equal ones the first in row order.

    Raises:
        ValueError: The mask is empty.
    """
    connectivity = 8 if mask.ndim == 2 else 26
    pieces: NDArray[np.integer] = cc3d.connected_components(  # type: ignore[call-overload]
        np.ascontiguousarray(mask), connectivity=connectivity
    )
    sizes = np.bincount(pieces.ravel())
    if sizes.size < 2:
        raise ValueError("an empty mask has no piece")
    piece: Mask = pieces == int(sizes[1:].argmax()) + 1
    return piece


def accepted_area(found: int, specialist: int, ratio: float) -> bool:
    """Whether a promptable model's mask is of the size of the object that it was prompted with.

    True if both are present and neither is more than `ratio` times the other. A mask that floods
    the image, or one that vanishes, would teach the student the promptable model's failure.
    """
    return found > 0 and specialist > 0 and 1 / ratio <= found / specialist <= ratio


def _around(mask: Mask, margin_share: float) -> Mask:
    """The bounding box of a mask, widened by a share of its longest side, 3 pixels at least."""
    low, high = extent(mask)
    margin = max(3, round(margin_share * int((high - low + 1).max())))
    around = np.zeros_like(mask)
    first, end = np.maximum(low - margin, 0), high + margin + 1
    around[tuple(map(slice, first, end))] = True
    return around


def _drawn(pixels: Mask, count: int, rng: Random) -> Ints:
    """Up to `count` different pixels; fewer where there are fewer."""
    found = np.argwhere(pixels)
    if count <= 0 or len(found) == 0:
        return np.zeros((0, pixels.ndim), np.int64)
    chosen: Ints = found[rng.choice(len(found), min(count, len(found)), replace=False)]
    return chosen
