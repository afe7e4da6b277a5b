"""Prompts as the arrays that SAM-2's prompt encoder takes; the same for every backend.

Letters: n objects, p points, y rows, x columns of a low-resolution mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sssflow.sam.geometry import Window
from sssflow.sam.hints import draw_hints
from sssflow.sam.promptable import Floats, Prompt


def group_by_points(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Indices of prompts that can share a decoder pass: equal point count, box and mask alike."""
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for index, prompt in enumerate(prompts):
        key = (
            prompt.point_count,
            prompt.box_xyxy_px is not None,
            prompt.mask_logits_yx is not None,
        )
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def sparse_and_dense(
    group: Sequence[Prompt],
    window: Window,
    input_size: int,
    *,
    hints: bool,
    grey_yx: Floats | None = None,
) -> tuple[tuple[Floats, NDArray[np.int32]] | None, Floats | None]:
    """Points with labels, and mask input, of prompts that share a decoder pass.

    Returns:
        Points (n, p, 2) in input coordinates (box corners first) with labels (n, p): 1 inside,
        0 outside, 2 and 3 box corners; None without points. Mask input (n, y, x); None without
        masks, unless `hints` draws one; `grey_yx`, the slice on the mask grid (or one per prompt,
        (n, y, x)), makes it better.
    """
    points, labels = None, None
    if group[0].point_count:
        points = np.asarray([_to_input(p, window, input_size) for p in group], np.float32)
        labels = np.asarray([_labels(p) for p in group], np.int32)
    rough = [p.mask_logits_yx for p in group if p.mask_logits_yx is not None]
    dense = np.stack(rough).astype(np.float32) if rough else None
    if hints:
        grey = (
            None if grey_yx is None else np.broadcast_to(grey_yx, (len(group), *grey_yx.shape[-2:]))
        )
        dense = draw_hints(points, labels, dense, input_size, grey)
    return (None if points is None or labels is None else (points, labels)), dense


def _to_input(prompt: Prompt, window: Window, input_size: int) -> list[tuple[float, float]]:
    box = prompt.box_xyxy_px
    corners = window.box_to_input(box, input_size) if box is not None else []
    return [*corners, *window.points_to_input(prompt.points_xy_px, input_size)]


def _labels(prompt: Prompt) -> list[int]:
    corners = [2, 3] if prompt.box_xyxy_px is not None else []
    return [*corners, *prompt.point_labels]
