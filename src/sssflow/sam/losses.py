"""SAM-2's training terms: focal, Dice, L1 of predicted IoU, object score (SAM-2 paper, appendix D).

Letters: n objects, m masks per object, y rows, x columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sssflow.sam.config import PretrainConfig
from sssflow.sam.heads import HeadOutput

_ALPHA, _GAMMA = 0.25, 2.0


def prompt_loss(out: HeadOutput, target_n1yx: Tensor, config: PretrainConfig) -> Tensor:
    """Loss of one decoder pass.

    Args:
        out: Masks at a quarter of the input size.
        target_n1yx: Coverage in [0, 1] at half of the input size; all zero: the object is absent.
        config: Weights of the terms.

    Of the three ambiguous masks only the best is trained, the single mask always; masks of absent
    objects are not trained, their score is.
    """
    logits = functional.interpolate(out.logits_n4yx, scale_factor=2, mode="bilinear")
    present_n = (target_n1yx.amax(dim=(1, 2, 3)) >= 0.5).to(logits.dtype)
    mask_n4 = config.focal_weight * focal(logits, target_n1yx)
    mask_n4 = mask_n4 + config.dice_weight * soft_dice(logits, target_n1yx)
    best = mask_n4[:, 1:].min(dim=1).values
    iou_error_n4 = (out.iou_n4 - hard_iou(logits, target_n1yx)).abs()
    per_object = mask_n4[:, 0] + best + config.iou_weight * iou_error_n4.mean(dim=1)
    score = functional.binary_cross_entropy_with_logits(out.score_n1[:, 0], present_n)
    masks = (per_object * present_n).sum() / present_n.sum().clamp(min=1)
    return masks + config.score_weight * score


def focal(logits_nmyx: Tensor, target_n1yx: Tensor) -> Tensor:
    """(n, m) mean focal loss (arXiv 1708.02002, equation 5) with alpha 0.25 and gamma 2."""
    target = target_n1yx.expand_as(logits_nmyx)
    entropy = functional.binary_cross_entropy_with_logits(logits_nmyx, target, reduction="none")
    probability = logits_nmyx.sigmoid()
    hit = probability * target + (1 - probability) * (1 - target)
    weight = _ALPHA * target + (1 - _ALPHA) * (1 - target)
    return (weight * (1 - hit) ** _GAMMA * entropy).mean(dim=(2, 3))


def soft_dice(logits_nmyx: Tensor, target_n1yx: Tensor) -> Tensor:
    """(n, m) 1 - (2 overlap + 1) / (sum + 1) of probabilities."""
    probability = logits_nmyx.sigmoid()
    overlap = (probability * target_n1yx).sum(dim=(2, 3))
    total = probability.sum(dim=(2, 3)) + target_n1yx.sum(dim=(2, 3))
    return 1 - (2 * overlap + 1) / (total + 1)


@torch.no_grad()
def hard_iou(logits_nmyx: Tensor, target_n1yx: Tensor) -> Tensor:
    """(n, m) IoU of thresholded masks; 0 where the union is empty."""
    found, true = logits_nmyx > 0, target_n1yx >= 0.5
    overlap = (found & true).sum(dim=(2, 3))
    union = (found | true).sum(dim=(2, 3))
    return overlap / union.clamp(min=1)
