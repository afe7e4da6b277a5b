"""What weak-to-strong methods share: the weak view, its pseudo label, and strong views with CutMix.

Letters: b batch, c channels, f foreground classes, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Generator, Tensor, nn

from sssflow.errors import InternalError
from sssflow.training.config import AugmentationConfig, WeakConfig
from sssflow.training.data import Batch, UnlabelledBatch
from sssflow.training.modes import training_mode
from sssflow.training.oracle import LeakedBatch
from sssflow.training.views import (
    chosen,
    paste,
    random_boxes,
    spread,
    strong_view,
    weak_geometry,
)


@dataclass(frozen=True)
class WeakView:
    """The weak view and SAM-2's masks carried through the same geometry (None without masks).

    `leaked_label_bhw` exists in the oracle runs of `semisam` alone (`training/oracle.py`).
    """

    image_bchw: Tensor
    mask_bfhw: Tensor | None
    mask_weight_bfhw: Tensor | None
    leaked_label_bhw: Tensor | None = None


@dataclass(frozen=True)
class PseudoLabel:
    """Arg-max and confidence of the teacher on the weak view."""

    label_bhw: Tensor
    confident_bhw: Tensor


@dataclass(frozen=True)
class StrongView:
    """A strong view after CutMix, with everything that its loss needs, pasted alike.

    `boxes_bhw` is all that comes from the partner: the box, and a pasted class where one is.
    """

    image_bchw: Tensor
    boxes_bhw: Tensor
    label_bhw: Tensor
    confident_bhw: Tensor
    mask_bfhw: Tensor | None
    mask_weight_bfhw: Tensor | None


def unlabelled_of(batch: Batch) -> UnlabelledBatch:
    """The unlabelled half of a batch, which the loop has promised to read."""
    if batch.unlabelled is None:
        raise InternalError("A semi-supervised method was given a batch without unlabelled slices.")
    return batch.unlabelled


def weak_view(batch: UnlabelledBatch, config: WeakConfig, generator: Generator) -> WeakView:
    """One random geometry for the image and its masks."""
    count, _, *sides = batch.image_bchw.shape
    geometry = weak_geometry((count, *sides), config, generator)
    image = geometry.image(batch.image_bchw)
    if batch.mask_bfhw is None or batch.mask_weight_bf is None:
        leaked = geometry.label(batch.leaked_label_bhw) if isinstance(batch, LeakedBatch) else None
        return WeakView(image, None, None, leaked)
    # Classes and background already share each voxel of the stored masks (`sam.propagate.merge`).
    mask = geometry.soft(batch.mask_bfhw)
    weight = batch.mask_weight_bf[:, :, None, None].expand_as(mask)
    return WeakView(image, mask, weight)


def pseudo_label(logits_bkhw: Tensor, threshold: float) -> PseudoLabel:
    """Arg-max, and where the largest probability reaches `threshold`."""
    confidence, label = logits_bkhw.float().softmax(1).max(1)
    return PseudoLabel(label, confidence >= threshold)


def make_strong(
    weak: WeakView, pseudo: PseudoLabel, config: AugmentationConfig, generator: Generator
) -> StrongView:
    """Strong intensities on the weak view, then CutMix of image, label, confidence and masks.

    With `class_paste_probability` a class of the partner is pasted beside the box.
    """
    image = strong_view(weak.image_bchw, config.strong, generator)
    boxes = random_boxes(image.shape, config.cutmix, generator)
    if config.class_paste_probability > 0:
        on = chosen(len(image), config.class_paste_probability, generator)
        region = class_region(pseudo, generator)
        if region.dim() > boxes.dim():  # a clip: one region, like one box, for all of its slices
            region = region.any(1)
        boxes = boxes | (region & spread(on, boxes))
    return StrongView(
        paste(image, boxes),
        boxes,
        paste(pseudo.label_bhw, boxes),
        paste(pseudo.confident_bhw, boxes),
        None if weak.mask_bfhw is None else paste(weak.mask_bfhw, boxes),
        None if weak.mask_weight_bfhw is None else paste(weak.mask_weight_bfhw, boxes),
    )


def class_region(pseudo: PseudoLabel, generator: Generator) -> Tensor:
    """Boolean (b,h,w): where the partner (reversed batch) confidently shows one class of its own.

    Of the classes that a partner shows one is drawn, with a weight that falls with the pixels
    that the class has in the whole batch. Empty where the partner shows no class confidently.
    """
    certain = pseudo.label_bhw * pseudo.confident_bhw
    one_hot = F.one_hot(certain.flatten(1), int(certain.max()) + 1)
    count_bk = one_hot.sum(1)
    weight_bk = (count_bk > 0) / count_bk.sum(0).clamp_min(1)
    weight_bk[:, 0] = 0
    shows = weight_bk.sum(1) > 0
    weight_bk[:, 0] = (~shows).float()  # something to draw; masked below
    drawn = torch.multinomial(weight_bk, 1, generator=generator)
    region = (certain == spread(drawn[:, 0], certain)) & spread(shows, certain)
    return region.flip(0)


@contextmanager
def statistics_kept(net: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's own statistics inside and leaves the running ones as they are.

    Perturbed slices (dropped channels, DFE, noise, CutMix) have other statistics than the plain
    ones met at prediction; averaged into the running statistics they spoil teacher and student.
    """
    norms = batch_norms(net)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Batch norm of a network in evaluation mode uses the batch's own statistics inside.

    Its running statistics stay as they are and everything else, dropout above all, stays off. For
    a teacher whose running statistics come from other images than those that it labels.
    """
    with statistics_kept(net), training_mode(batch_norms(net)):
        yield


def batch_norms(net: nn.Module) -> list[nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm]:
    """Its layers with running statistics."""
    kinds = nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    return [module for module in net.modules() if isinstance(module, kinds)]


def split_levels(features: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """Feature lists of the parts that were joined along the batch axis."""
    parts = [torch.split(level, list(sizes)) for level in features]
    return [[part[i] for part in parts] for i in range(len(sizes))]


def join_levels(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The reverse of `split_levels`."""
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def channel_dropout(features: Sequence[Tensor], rate: float, generator: Generator) -> list[Tensor]:
    """Whole channels of every level zeroed with probability `rate`, the others scaled up.

    Source: UniMatch V1 (Dropout2d 0.5 on all encoder levels).
    """
    dropped = []
    for level in features:
        drawn = torch.rand(level.shape[:2], generator=generator, device=generator.device)
        mask = (drawn >= rate).float() / (1 - rate)
        dropped.append(level * mask.view(*level.shape[:2], *[1] * (level.dim() - 2)))
    return dropped


def complementary_dropout(
    first: list[Tensor], second: list[Tensor], share: float, generator: Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """Channel masks m ~ 2 Bernoulli(1/2) for one view and 2 - m for the other.

    Each level of the list draws its own mask; a pair is exempt with probability 1 - `share`
    (mask 1). Source: UniMatch V2 (there all levels have the same width and share one mask).
    """
    count = first[0].shape[0]
    device = generator.device
    exempt = torch.rand(count, generator=generator, device=device) >= share
    out: tuple[list[Tensor], list[Tensor]] = ([], [])
    for one, two in zip(first, second, strict=True):
        drawn = torch.rand((count, one.shape[1]), generator=generator, device=device) < 0.5
        mask = torch.where(exempt[:, None], 1.0, 2.0 * drawn.float())
        mask = mask.view(*mask.shape, *[1] * (one.dim() - 2))
        out[0].append(one * mask)
        out[1].append(two * (2.0 - mask))
    return out
