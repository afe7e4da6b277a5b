"""Coarse masks as prompts: the specialist's mask goes to SAM-2 beside the box and the point.

PCSW vouches for an object in a window of slices. Within the reach of that window each slice on
which the coarse mask shows the object gets that mask as SAM-2's mask prompt, with the box and the
point of PCSW where there are some, and else with the box and the deepest point of the mask itself.
No slice waits for another, so an error on one does not travel. The window that SAM-2 sees is laid
around the prompts of PCSW; where a mask leads out of it (another focus of a lesion), SAM-2 is not
asked, for its answer would be a confident background that it never saw.

Source: SemiSAM+ (MedIA 106 (2025) 103733), prompts "mask"; the mask prompt of SAM (arXiv
2304.02643, section 3).

Letters: s slices, h rows, w columns, y and x rows and columns of the low-resolution mask.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from sssflow.sam.build import MASK_STRIDE
from sssflow.sam.geometry import Window
from sssflow.sam.promptable import Prompt

Floats = NDArray[np.float32]

_SURE_LOGIT = 6.0


def prompt_from_mask(mask_hw: NDArray[np.bool_]) -> Prompt | None:
    """Box and deepest point of the largest piece of a mask; None for an empty mask."""
    pieces, count = ndimage.label(mask_hw)
    if count == 0:
        return None
    largest = pieces == int(np.bincount(pieces.ravel())[1:].argmax()) + 1
    ys, xs = np.nonzero(largest)
    depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return Prompt(
        box_xyxy_px=(float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())),
        points_xy_px=((float(x), float(y)),),
        point_labels=(1,),
    )


def guided_prompts(
    coarse_shw: NDArray[np.bool_],
    prompts: dict[int, Prompt],
    reach: range,
    window: Window,
    input_size: int,
) -> dict[int, Prompt]:
    """Prompts of one object by slice of the volume, each with the coarse mask where there is one.

    A slice without a prompt of PCSW has none either if the largest piece of its mask reaches beyond
    the window.

    Args:
        coarse_shw: Where the coarse masks show the object.
        prompts: The prompts that PCSW chose, by slice; each stays, with or without a mask.
        reach: Slices that may be prompted.
        window: What SAM-2 sees of each slice.
        input_size: Side of SAM-2's input; the mask prompt has a quarter of it.
    """
    found: dict[int, Prompt] = {}
    for index in reach:
        mask_hw = coarse_shw[index]
        prompt = prompts.get(index) or _prompt_within(window, mask_hw)
        if prompt is None:
            continue
        if mask_hw.any():
            prompt = replace(prompt, mask_logits_yx=_mask_logits(mask_hw, window, input_size))
        found[index] = prompt
    return found


def _prompt_within(window: Window, mask_hw: NDArray[np.bool_]) -> Prompt | None:
    """`prompt_from_mask`, or None where its box does not lie in the window as a whole."""
    prompt = prompt_from_mask(mask_hw)
    if prompt is None or prompt.box_xyxy_px is None or not window.holds(prompt.box_xyxy_px):
        return None
    return prompt


def _mask_logits(mask_hw: NDArray[np.bool_], window: Window, input_size: int) -> Floats:
    """The mask in the window at low resolution: the share of each cell, as a logit of +-6."""
    whole = torch.from_numpy(mask_hw.astype(np.float32))[None, None]
    share = window.crop(whole, input_size // MASK_STRIDE)[0, 0]
    logits: Floats = ((2 * share - 1) * _SURE_LOGIT).numpy()
    return logits
