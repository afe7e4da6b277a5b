"""A bright ball and its prompts: what the tests of the SAM-2 room segment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.prompts import ObjectPrompts, SlicePrompt

DIGEST = "0" * 64


def bright_disc(shape_shw: tuple[int, int, int] = (7, 48, 56)) -> tuple[NDArray, NDArray]:
    """A bright ball's slices on grey noise: image in [0, 1] and mask."""
    rng = np.random.default_rng(3)
    s, h, w = shape_shw
    z, y, x = np.mgrid[:s, :h, :w]
    radius = np.clip(11 - 1.5 * np.abs(z - s // 2), 0, None)
    mask = (y - 22) ** 2 + (x - 30) ** 2 < radius**2
    image = np.where(mask, 0.85, 0.25) + rng.normal(0, 0.03, shape_shw)
    return np.clip(image, 0, 1).astype(np.float32), mask


def box_prompt(mask_hw: NDArray, index: int) -> SlicePrompt:
    """Bounding box and mean point of a mask."""
    ys, xs = np.nonzero(mask_hw)
    return SlicePrompt(
        slice_index=index,
        box_xyxy_px=(float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())),
        points_xy_px=((float(np.rint(xs.mean())), float(np.rint(ys.mean()))),),
        point_labels=(1,),
    )


def object_prompts(*slices: SlicePrompt, class_index: int = 1) -> ObjectPrompts:
    """An object with the given prompts."""
    return ObjectPrompts(
        class_index=class_index,
        continuity=1.0,
        window_start=0,
        window_length=2,
        accepted=True,
        component_voxels=10,
        slices=slices,
    )
