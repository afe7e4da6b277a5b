"""What one step of in-loop SSS is made of: pseudo labels by prompts, and losses of clips.

SSS (arXiv 2506.08949): the coarse head's masks of a clip pass PCSW, its prompts go through SAM-2's
prompt encoder, memory and mask decoder, and what comes out labels the clip.

Letters: c clips, t slices, b = c t slices, k classes, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Generator, Tensor, nn

from sssflow.contracts.prompts import ObjectPrompts
from sssflow.errors import UsageError
from sssflow.networks.base import SegmentationNet
from sssflow.prompts.config import SimulateConfig
from sssflow.prompts.pcsw import class_taus, select_prompts
from sssflow.prompts.simulate import simulate_object
from sssflow.training.clips import as_clips, as_slices, carry_prompts
from sssflow.training.config import TrainConfig
from sssflow.training.in_loop_config import ClipLossKind, SssInLoopConfig
from sssflow.training.losses import dice_loss, one_hot_bkhw, pseudo_label_loss
from sssflow.training.methods.streams import StrongView, complementary_dropout
from sssflow.training.views import Geometry, paste

if TYPE_CHECKING:
    # SAM-2 takes seconds to import: only who trains it pays.
    from sssflow.sam.segmenter import ClassBanks, ClipMasks, Sam2Segmenter

Prompts = list[tuple[ObjectPrompts, ...]]
"""Objects of each clip; a clip without any is left alone."""


@dataclass(frozen=True)
class Targets:
    """What the teacher says of the weak view, without gradients.

    Attributes:
        features: Its maps, for DFE.
        prompts: In pixels of the view.
        label_cthw: Pseudo label from the prompted masks.
        confident_cthw: Where it may be used (`trusted`).
        coarse_cthw: The coarse label that the prompts come from, in the view.
    """

    features: list[Tensor]
    prompts: Prompts
    label_cthw: Tensor
    confident_cthw: Tensor
    coarse_cthw: Tensor


def require_sam2(student: SegmentationNet, config: TrainConfig) -> Sam2Segmenter:
    """The student as SAM-2.

    Raises:
        UsageError: It is another network, its input is no square, or `pcsw.tau_per_class` has
            another key than the number of a foreground class.
    """
    from sssflow.sam.segmenter import Sam2Segmenter

    height, width = config.preprocessing.size_hw
    if not isinstance(student, Sam2Segmenter) or height != width:
        raise UsageError(
            "In-loop SSS trains SAM-2 itself, on square slices.",
            where="train.network.name, train.preprocessing.size_hw (or of warmup, baseline)",
            expected="sam2, equal sides",
            found=f"{config.network.name}, {height}x{width}",
            action="Set train.network.name=sam2, or choose the method sss for other students.",
        )
    class_taus(config.sss_in_loop.pcsw, class_numbers(student.class_count))
    return student


@torch.no_grad()
def make_targets(
    net: Sam2Segmenter,
    scan_cthw: Tensor,
    view_cthw: Tensor,
    geometry: Geometry,
    settings: SssInLoopConfig,
    banks: ClassBanks,
    generator: Generator,
) -> Targets:
    """Coarse masks, prompts and prompted masks of unlabelled clips.

    Args:
        net: The teacher.
        scan_cthw: The clips as they are.
        view_cthw: Their weak view, read through `geometry`.
        geometry: One grid per clip.
        settings: Everything else.
        banks: Memories of each class.
        generator: Of the draws.
    """
    _, length, height, width = view_cthw.shape
    features = net.features(as_slices(view_cthw))
    scores = net.head(features)
    coarse = as_clips(scores.argmax(1), length)
    if settings.prompts_from == "view":
        prompts = pcsw_prompts(coarse, net.class_count, settings)
    else:
        plain = as_clips(net.head(net.features(as_slices(scan_cthw))).argmax(1), length)
        found = pcsw_prompts(plain, net.class_count, settings)
        prompts = [carry_prompts(o, g) for o, g in zip(found, geometry.grid_bhwg, strict=True)]
    masks = prompted_masks(net, features, view_cthw, prompts, settings, banks, generator)
    label, confident = torch.zeros_like(coarse), torch.zeros_like(coarse, dtype=torch.bool)
    for i, (found_masks, own) in enumerate(zip(masks, torch.split(scores, length), strict=True)):
        if found_masks is None:
            continue
        logits = found_masks.merged_logits(net.class_count, (height, width), present_only=True)
        confidence, label[i] = logits.softmax(1).max(1)
        asked = found_masks.asked_tk(net.class_count)
        confident[i] = trusted(confidence, own, asked, settings.confidence_threshold)
    return Targets(features, prompts, label, confident, coarse)


def trusted(
    confidence_thw: Tensor, coarse_tkhw: Tensor, asked_tk: Tensor, threshold: float
) -> Tensor:
    """Where a pseudo label from prompted masks may be used (t, h, w).

    The masks say nothing of a class that was not asked for, whose absence would else pass for
    certain. So beside a confidence of `threshold` or more, on a slice where anything was asked
    for, the coarse head must neither see such a class nor give them all more than 1 - `threshold`.

    Args:
        confidence_thw: Of the prompted masks.
        coarse_tkhw: Logits of the coarse head.
        asked_tk: Which classes were asked for on which slice (`ClipMasks.asked_tk`).
        threshold: 0 to 1.
    """
    known = _at_label(asked_tk, coarse_tkhw.argmax(1))
    unasked = ~asked_tk[:, 1:, None, None]
    elsewhere = (coarse_tkhw.float().softmax(1)[:, 1:] * unasked).sum(1)
    return known & (confidence_thw >= threshold) & (elsewhere <= 1 - threshold)


def _at_label(asked_tk: Tensor, label_thw: Tensor) -> Tensor:
    """Whether the class of each pixel is one of those that were asked for on its slice."""
    return asked_tk.gather(1, label_thw.long().flatten(1)).view(label_thw.shape)


def pcsw_prompts(coarse_cthw: Tensor, class_count: int, settings: SssInLoopConfig) -> Prompts:
    """PCSW on the coarse labels of each clip."""
    names = class_numbers(class_count)
    labels = coarse_cthw.to(torch.uint8).cpu().numpy()
    return [
        select_prompts(np.ascontiguousarray(part), settings.pcsw, class_names=names)
        for part in labels
    ]


def class_numbers(class_count: int) -> tuple[str, ...]:
    """What PCSW calls the classes in the loop, which knows no names."""
    return ("background", *(str(k) for k in range(1, class_count)))


def true_prompts(
    label_cthw: Tensor, class_count: int, settings: SssInLoopConfig, generator: Generator
) -> Prompts:
    """Prompts of labelled clips from their masks: jittered box and deepest point."""
    seed = torch.randint(0, 2**31, (1,), generator=generator, device=generator.device)
    rng = np.random.default_rng(int(seed))
    rule = SimulateConfig(box_jitter=settings.box_jitter, prompt_freq=settings.pcsw.prompt_freq)
    prompts: Prompts = []
    for part in label_cthw.cpu().numpy():
        found = (simulate_object(part == k, k, rule, rng) for k in range(1, class_count))
        prompts.append(tuple(item for item in found if item is not None))
    return prompts


def prompted_masks(
    net: Sam2Segmenter,
    features: Sequence[Tensor],
    image_cthw: Tensor,
    prompts: Prompts,
    settings: SssInLoopConfig,
    banks: ClassBanks,
    generator: Generator,
) -> list[ClipMasks | None]:
    """SAM-2's masks of each clip; None where it has no prompt."""
    length = image_cthw.shape[1]
    out: list[ClipMasks | None] = []
    for i, objects in enumerate(prompts):
        part = [level[i * length : (i + 1) * length] for level in features]
        out.append(
            net.clip_masks(
                part,
                image_cthw[i][:, None],
                objects,
                memory=settings.memory,
                draws=settings.memory_draws,
                banks=banks,
                generator=generator,
            )
            if objects
            else None
        )
    return out


def clip_loss(
    logits_bkhw: Tensor,
    label_bhw: Tensor,
    weight_bhw: Tensor,
    kind: ClipLossKind,
    *,
    asked_bk: Tensor | None = None,
) -> Tensor:
    """Loss of slices where `weight_bhw` (boolean) is true; 0 with a gradient if nowhere.

    bce_dice: binary cross-entropy of each class against the background, and soft Dice of its
    probability with sums over the batch (the code fragment of SSS), each the mean over the classes
    in `asked_bk`; the others: see `losses.pseudo_label_loss`.

    Args:
        logits_bkhw: Of a head.
        label_bhw: What it should say; of asked classes alone.
        weight_bhw: Where it counts.
        kind: Form of the loss.
        asked_bk: Classes that have an answer on each slice; the other planes have no part in
            bce_dice. None: all.
    """
    if kind != "bce_dice":
        return pseudo_label_loss(logits_bkhw, label_bhw, weight_bhw, kind=kind)
    logits = logits_bkhw.float()
    planes = logits[:, 1:] - logits[:, :1]
    target = one_hot_bkhw(label_bhw.long(), logits.shape[1])[:, 1:]
    counted = weight_bhw[:, None].expand(planes.shape)
    if asked_bk is not None:
        counted = counted & asked_bk[:, 1:, None, None]
    weight = counted.float()
    entropy = F.binary_cross_entropy_with_logits(planes, target, reduction="none")
    mean = (entropy * weight).sum() / weight.sum().clamp_min(1)
    asked = counted.transpose(0, 1).flatten(1).any(1)
    return mean + dice_loss(planes.sigmoid(), target, weight, classes=asked)


def decoder_loss(
    masks: Sequence[ClipMasks | None],
    label_cthw: Tensor,
    weight_cthw: Tensor,
    class_count: int,
    kind: ClipLossKind,
) -> Tensor:
    """Mean over the prompted clips of `clip_loss` on their answered slices; 0 without any.

    Each class is an object of its own (G11): with memory `none` one slice may answer for one class
    and the next for another. A class that was not asked for on a slice is background there, as
    everything is that is not the object: only so a mask that spills over it is corrected.
    """
    losses = []
    for found, label, weight in zip(masks, label_cthw, weight_cthw, strict=True):
        if found is None:
            continue
        asked = found.asked_tk(class_count)
        logits = found.merged_logits(class_count, label.shape[-2:], present_only=False)
        target = torch.where(_at_label(asked, label), label, 0)
        on = asked[:, 0]
        losses.append(clip_loss(logits[on], target[on], weight[on], kind, asked_bk=asked[on]))
    return torch.stack(losses).mean() if losses else label_cthw.new_zeros((), dtype=torch.float32)


def strong_losses(
    net: Sam2Segmenter,
    logits: Sequence[Tensor],
    pair: Sequence[Sequence[Tensor]],
    views: Sequence[StrongView],
    target: Targets,
    settings: SssInLoopConfig,
    banks: ClassBanks,
    generator: Generator,
) -> dict[str, Tensor]:
    """Losses of the heads that learn the pseudo label, each the mean over the strong views.

    Args:
        net: The student.
        logits: Of the coarse head, for each view.
        pair: The maps of each view, after DFE.
        views: With the pseudo label after CutMix.
        target: The pseudo label before it, and the prompts.
        settings: Which heads.
        banks: Memories of each class.
        generator: Of the draws.
    """
    losses: dict[str, list[Tensor]] = {}
    for part, maps, view in zip(logits, pair, views, strict=True):
        if settings.unlabelled_on != "decoder":
            flat = (view.label_bhw.flatten(0, 1), view.confident_bhw.flatten(0, 1))
            loss = clip_loss(part, *flat, settings.unlabelled_loss)
            losses.setdefault("unlabelled_coarse", []).append(loss)
        if settings.unlabelled_on != "coarse":
            masks = prompted_masks(
                net, maps, view.image_bchw, target.prompts, settings, banks, generator
            )
            # A prompt says nothing of what CutMix pasted from another clip.
            own = target.confident_cthw & ~view.boxes_bhw[:, None]
            loss = decoder_loss(
                masks, target.label_cthw, own, net.class_count, settings.unlabelled_loss
            )
            losses.setdefault("unlabelled_prompted", []).append(loss)
    return {name: torch.stack(values).mean() for name, values in losses.items()}


def scores_loss(masks: Sequence[ClipMasks | None], label_cthw: Tensor) -> Tensor:
    """L1 of the predicted IoU plus cross-entropy of the object score, over answered slices.

    The score's target is whether the label shows the object at all. The IoU is measured on the
    masks' grid, and counts only where the object fills half of one of its cells: it says nothing
    of a thinner one.
    """
    terms = []
    for found, label_thw in zip(masks, label_cthw, strict=True):
        if found is None:
            continue
        classes = torch.tensor(found.class_index, device=label_thw.device)
        true = label_thw[None] == classes[:, None, None, None]
        present = true.any(3).any(2)
        size = found.logits_ntyx.shape[-2:]
        true = F.interpolate(true.float(), size, mode="area") >= 0.5
        mask = found.logits_ntyx.detach() > 0
        union = (mask | true).sum((2, 3))
        iou = (mask & true).sum((2, 3)) / union.clamp_min(1)
        error = (found.iou_nt.float() - iou).abs() * true.any(3).any(2)
        score = F.binary_cross_entropy_with_logits(
            found.score_nt.float(), present.float(), reduction="none"
        )
        answered = found.answered_nt.float()
        terms.append(((error + score) * answered).sum() / answered.sum().clamp_min(1))
    return torch.stack(terms).mean() if terms else label_cthw.new_zeros((), dtype=torch.float32)


def perturbed(
    dfe: nn.Module | None,
    weak: Sequence[Tensor],
    pair: list[list[Tensor]],
    views: Sequence[StrongView],
    config: TrainConfig,
    generator: Generator,
) -> list[list[Tensor]]:
    """The maps of both strong views after DFE, complementary dropout, both or neither."""
    settings = config.sss_in_loop
    one, two = pair
    if dfe is not None:
        firsts = [two, one]
        if settings.dfe_pair == "weak_strong":
            # Weak features take the strong view's CutMix, so that both show the same pixels.
            firsts = [[_pasted(f, v.boxes_bhw) for f in weak] for v in views]
        one, two = (dfe(first, strong) for first, strong in zip(firsts, pair, strict=True))
    if settings.feature_perturbation in ("comp_dropout", "both"):
        share = config.unimatch_v2.dropout_share
        one, two = complementary_dropout(one, two, share, generator)
    return [one, two]


def _pasted(map_bchw: Tensor, boxes_chw: Tensor) -> Tensor:
    """The CutMix of the clips on a feature map of their slices: one box and partner per clip."""
    clips = map_bchw.reshape(len(boxes_chw), -1, *map_bchw.shape[2:])
    return paste(clips, boxes_chw).reshape(map_bchw.shape)


@contextmanager
def parameters_fixed(module: nn.Module, *, fixed: bool) -> Iterator[None]:
    """Inside, gradients pass through the module and not into its parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad] if fixed else []
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
