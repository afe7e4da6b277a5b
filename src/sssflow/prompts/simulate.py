"""Prompts from a true mask: for pre-training SAM-2 and for the true-box yardstick, never for more.

Only a LabelledCase has a mask to read. The code of SemiSAM v1 clicked on the truth of unlabelled
scans; here such a case has no label to click on, and handing one over is refused.
Axis letters: s slices, h rows, w columns.
"""

from __future__ import annotations

from pathlib import Path

import cc3d
import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.dataset import LabelledCase
from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, SlicePrompt
from sssflow.errors import DataError
from sssflow.prompts.boxes import Box, Mask, bounding_box, interior_point, widen
from sssflow.prompts.config import SimulateConfig
from sssflow.volume.packed import read_packed

Point = tuple[float, float]


def simulate_case(
    case: LabelledCase,
    base: Path,
    class_count: int,
    config: SimulateConfig,
    generator: np.random.Generator,
) -> CasePrompts:
    """Prompts of every foreground class of a labelled case.

    Args:
        case: Whose mask is read.
        base: Folder of the manifest.
        class_count: Classes with the background.
        config: Settings.
        generator: Source of jitter and random points; not used if there are none.

    Raises:
        DataError: The case has no mask by type, or its label is missing, changed or not uint8.
    """
    if not isinstance(case, LabelledCase):
        raise DataError(
            "Prompts cannot be simulated for a case without a mask.",
            expected="a labelled, validation or test case",
            found=type(case).__name__,
            action="Use the prompts stage, which prompts from coarse masks.",
        )
    labels_shw = read_packed(case.label, base=base, shape=case.grid.shape_shw)
    found = (simulate_object(labels_shw == k, k, config, generator) for k in range(1, class_count))
    return CasePrompts(
        case_id=case.case_id,
        shape_shw=case.grid.shape_shw,
        objects=tuple(item for item in found if item is not None),
    )


def simulate_object(
    mask_shw: Mask, class_index: int, config: SimulateConfig, generator: np.random.Generator
) -> ObjectPrompts | None:
    """Prompts of one object on every `prompt_freq`-th slice from that of largest area.

    None if no slice has `min_pixels`. `continuity` is that of the true mask over all slices.
    """
    area = np.count_nonzero(mask_shw, axis=(1, 2))
    if area.max(initial=0) < config.min_pixels:
        return None
    anchor = int(np.argmax(area))
    chosen = [
        i
        for i in np.flatnonzero(area >= config.min_pixels).tolist()
        if (i - anchor) % config.prompt_freq == 0
    ]
    labelled = cc3d.connected_components(np.ascontiguousarray(mask_shw), connectivity=26)
    largest = int(np.bincount(labelled.ravel())[1:].max())
    return ObjectPrompts(
        class_index=class_index,
        continuity=largest / int(area.sum()),
        window_start=0,
        window_length=mask_shw.shape[0],
        accepted=True,
        component_voxels=int(area.sum()),
        slices=tuple(simulate_slice(mask_shw[i], i, config, generator) for i in chosen),
    )


def simulate_slice(
    mask_hw: Mask, slice_index: int, config: SimulateConfig, generator: np.random.Generator
) -> SlicePrompt:
    """Box and points of a non-empty 2-D mask.

    Raises:
        ValueError: The mask is empty.
    """
    box = bounding_box(mask_hw)
    positive = _inside(mask_hw, config.positive_points, generator)
    negative = _outside(mask_hw, box, config.negative_points, generator)
    jittered = jitter_box(box, config.box_jitter, _size(mask_hw), generator)
    return SlicePrompt(
        slice_index=slice_index,
        box_xyxy_px=jittered if config.box else None,
        points_xy_px=(*positive, *negative),
        point_labels=(*(1 for _ in positive), *(0 for _ in negative)),
    )


def jitter_box(
    box_xyxy: Box, share: float, size_hw: tuple[int, int], generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """Move each side by a uniform draw of up to `share` of the box's extent, within the image.

    The box never turns inside out: `share` is at most 0.5, and sides that cross are swapped.
    """
    x0, y0, x1, y1 = box_xyxy
    if share == 0:
        return float(x0), float(y0), float(x1), float(y1)
    height, width = size_hw
    moves = generator.uniform(-share, share, 4) * np.array([x1 - x0 + 1, y1 - y0 + 1] * 2)
    xs = np.sort(np.clip([x0 + moves[0], x1 + moves[2]], 0, width - 1))
    ys = np.sort(np.clip([y0 + moves[1], y1 + moves[3]], 0, height - 1))
    return float(xs[0]), float(ys[0]), float(xs[1]), float(ys[1])


def _inside(mask_hw: Mask, count: int, generator: np.random.Generator) -> tuple[Point, ...]:
    if count == 0:
        return ()
    first = interior_point(mask_hw)
    return ((float(first[0]), float(first[1])), *_drawn(mask_hw, count - 1, generator))


def _outside(
    mask_hw: Mask, box: Box, count: int, generator: np.random.Generator
) -> tuple[Point, ...]:
    if count == 0:
        return ()
    # A quarter of the object's extent around it: near enough to say where the border is.
    margin = max(3, (max(box[2] - box[0], box[3] - box[1]) + 1) // 4)
    x0, y0, x1, y1 = widen(box, margin, _size(mask_hw))
    near_hw = np.zeros_like(mask_hw)
    near_hw[y0 : y1 + 1, x0 : x1 + 1] = True
    return _drawn(near_hw & ~mask_hw, count, generator)


def _drawn(pixels_hw: Mask, count: int, generator: np.random.Generator) -> tuple[Point, ...]:
    """Up to `count` different pixels; fewer where there are fewer."""
    ys, xs = np.nonzero(pixels_hw)
    if count == 0 or xs.size == 0:
        return ()
    picked: NDArray[np.int64] = generator.choice(xs.size, min(count, xs.size), replace=False)
    return tuple((float(xs[i]), float(ys[i])) for i in picked.tolist())


def _size(mask_hw: Mask) -> tuple[int, int]:
    return mask_hw.shape[0], mask_hw.shape[1]
