"""SAM-2's masks of one case at network size, and how far each is believed.

Letters: n slices of the case, f foreground classes, h rows, w columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sssflow.contracts.dataset import UnlabelledCase
from sssflow.contracts.masks import CaseMasks, ObjectScores
from sssflow.contracts.model import Preprocessing
from sssflow.errors import DataError
from sssflow.networks.predict import resize_images
from sssflow.training.method_config import SssConfig
from sssflow.volume.packed import read_packed


def case_masks(
    case: UnlabelledCase,
    found: tuple[CaseMasks, Path] | None,
    foreground: int,
    preprocessing: Preprocessing,
    trust: SssConfig,
) -> tuple[Tensor, Tensor]:
    """uint8 (n,f,h,w) at network size and the trust (n,f); 0 where a class has no voxel."""
    slices = case.grid.shape_shw[0]
    if found is None:
        shape = (slices, foreground, *preprocessing.size_hw)
        return torch.zeros(shape, dtype=torch.uint8), torch.zeros(slices, foreground)
    masks, folder = found
    shape = (foreground, *case.grid.shape_shw)
    array = read_packed(masks.probability_kshw, base=folder, shape=shape)
    soft = torch.from_numpy(array.astype(np.float32)).transpose(0, 1)
    small = resize_images(soft, preprocessing.size_hw).round().clamp(0, 255).to(torch.uint8)
    weight = torch.zeros(slices, foreground)
    for scores in masks.objects:
        weight[:, scores.class_index - 1] = _trust(scores, slices, trust, case.case_id)
    return small, weight * torch.from_numpy(array.any(axis=(2, 3)).T)


def _trust(scores: ObjectScores, slices: int, rule: SssConfig, case_id: str) -> Tensor:
    """Predicted IoU per slice; 0 where there is no answer, or SAM-2 doubts it."""
    if len(scores.predicted_iou) != slices or len(scores.object_score) != slices:
        raise DataError(
            "Mask scores and slices differ in number.",
            where=case_id,
            expected=slices,
            found=len(scores.predicted_iou),
            action="Run the infer stage again.",
        )
    weight = torch.zeros(slices)
    pairs = zip(scores.predicted_iou, scores.object_score, strict=True)
    for i, (iou, presence) in enumerate(pairs):
        doubted = presence is not None and presence < rule.mask_min_object_score
        if iou is not None and iou >= rule.mask_min_predicted_iou and not doubted:
            weight[i] = min(max(iou, 0.0), 1.0)
    return weight
