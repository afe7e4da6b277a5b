"""Losses. b batch, k classes (0 background), f foreground classes, h rows, w columns.

Every function returns a scalar and computes in float32 whatever the autocast state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor

from sssflow.training.method_config import MaskLossKind, PseudoLossKind

IGNORED = 255
"""Label value that takes no part in any loss."""

_SMOOTH = 1e-5


def dice_loss(
    probability_bkhw: Tensor,
    target_bkhw: Tensor,
    weight_bkhw: Tensor,
    *,
    classes: Tensor | None = None,
) -> Tensor:
    """Mean over k of 1 - (2 sum wpt + e) / (sum wpp + sum wtt + e), sums over the whole batch.

    The squared denominator and e = 1e-5 are SSL4MIS's; a class that is neither predicted nor
    present has loss 0. `weight_bkhw` broadcasts. `classes` (k booleans) are those that count; none
    of them: 0 with a gradient.
    """
    axes = (0, *range(2, probability_bkhw.dim()))
    overlap = (weight_bkhw * probability_bkhw * target_bkhw).sum(axes)
    mass = (weight_bkhw * (probability_bkhw.square() + target_bkhw.square())).sum(axes)
    loss_k = 1.0 - (2.0 * overlap + _SMOOTH) / (mass + _SMOOTH)
    if classes is None:
        return loss_k.mean()
    return (loss_k * classes).sum() / classes.sum().clamp_min(1)


def supervised_loss(logits_bkhw: Tensor, label_bhw: Tensor) -> Tensor:
    """(cross-entropy + Dice) / 2 over all classes, background included.

    Source: the SSL4MIS baselines (their supervised term for ACDC). Pixels labelled `IGNORED`
    count in neither half.
    """
    logits = logits_bkhw.float()
    target = label_bhw.long()
    known = target != IGNORED
    cross_entropy = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
    cross_entropy = cross_entropy / known.sum().clamp_min(1)
    one_hot = one_hot_bkhw(target, logits.shape[1])
    dice = dice_loss(logits.softmax(1), one_hot, known[:, None].float())
    return 0.5 * (cross_entropy + dice)


def one_hot_bkhw(label_bhw: Tensor, class_count: int) -> Tensor:
    """Float one-hot; an `IGNORED` pixel is zero in every class."""
    classes = torch.arange(class_count, device=label_bhw.device)
    return (label_bhw[:, None] == classes.view(-1, *[1] * (label_bhw.dim() - 1))).float()


def pseudo_label_loss(
    logits_bkhw: Tensor,
    label_bhw: Tensor,
    confident_bhw: Tensor,
    *,
    kind: PseudoLossKind,
) -> Tensor:
    """Loss of a strong view against the pseudo label, where the teacher is confident.

    ce: summed over confident pixels, divided by the number of all: few confident pixels mean a
    small term. UniMatch V2 leaves out padding; here a view that reaches beyond its scan repeats
    the border, in image and label, and the zeros around a volume smaller than a patch count as
    the scan does. dice: over confident pixels only (UniMatch V1, medical), and over the classes
    that the teacher is confident of somewhere: early on that is often the background alone, and
    the Dice of the others would push every foreground class to zero.
    ce_dice: mean of the two. Without a confident pixel every form is exactly 0 with a gradient.
    """
    logits = logits_bkhw.float()
    weight = confident_bhw.float()
    terms = []
    if kind in ("ce", "ce_dice"):
        per_pixel = F.cross_entropy(logits, label_bhw.long(), reduction="none")
        terms.append((per_pixel * weight).sum() / max(1, weight.numel()))
    if kind in ("dice", "ce_dice"):
        one_hot = one_hot_bkhw(label_bhw.long(), logits.shape[1])
        present = (one_hot * weight[:, None]).transpose(0, 1).flatten(1).sum(1) > 0
        terms.append(dice_loss(logits.softmax(1), one_hot, weight[:, None], classes=present))
    return torch.stack(terms).mean()


def consistency_loss(
    logits_bkhw: Tensor, teacher_probability_bkhw: Tensor, certain_bhw: Tensor | None = None
) -> Tensor:
    """Mean squared difference of softmax outputs (Mean Teacher as in SSL4MIS).

    With `certain_bhw`, the mean over those pixels alone (UA-MT); none: 0 with a gradient.
    """
    probability = logits_bkhw.float().softmax(1)
    difference = (probability - teacher_probability_bkhw.float()).square()
    if certain_bhw is None:
        return difference.mean()
    per_pixel = difference.mean(1) * certain_bhw
    return per_pixel.sum() / certain_bhw.sum().clamp_min(1)


def mask_target(probability_bfhw: Tensor) -> Tensor:
    """Foreground distribution from independent per-object probabilities.

    Each object's logit competes in a softmax with the others and a background logit of 0, so that
    overlapping masks share their pixels: p_k = o_k / (1 + sum o), o = p / (1 - p). One object
    alone keeps its probability. Probabilities are first kept 1/510 away from 0 and 1 (half a step
    of the uint8 they were stored in).
    """
    p = probability_bfhw.float().clamp(1 / 510, 1 - 1 / 510)
    odds = p / (1 - p)
    return odds / (1 + odds.sum(1, keepdim=True))


def mask_loss(
    logits_bkhw: Tensor, target_bfhw: Tensor, weight_bfhw: Tensor, *, kind: MaskLossKind
) -> Tensor:
    """Loss of the student against SAM-2's soft masks (no gradient into the masks).

    `weight_bfhw` >= 0 is the trust in each class at each pixel; a class that SAM-2 did not segment
    on a slice has weight 0 there and is not pushed in either direction. All weights zero: the loss
    is exactly 0 with a gradient.
    mse: sum of w (softmax - mask)^2 / sum of w (SemiSAM's form, per class). dice: weighted soft
    Dice, which does not shrink with small structures.
    """
    probability = logits_bkhw.float().softmax(1)[:, 1:]
    target, weight = target_bfhw.detach().float(), weight_bfhw.detach().float()
    if kind == "mse":
        difference = (probability - target).square()
        return (weight * difference).sum() / weight.sum().clamp_min(1.0)
    return dice_loss(probability, target, weight)
