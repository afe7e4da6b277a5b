"""SAM-2's masks of one clip inside a training step: with gradients, memory and the bank.

Prompted slices are segmented alone, as SAM-2 does with its first frame. Every other slice of the
clip attends to memories: that of the nearest prompted slice, and others that are either drawn from
the bank of the object's class and the clip's own prompted slices (Medical-SAM2), or those of the
slices between it and the prompted one (SAM-2's order in time). Slices are visited outwards from
the prompted ones, all objects side by side. Object pointers are left out, as in Medical-SAM2's
2-D form.

Letters: t slices of the clip, n objects, r pairs of an object and a slice, c channels, y rows,
x columns of the mask grid (input / 4) or of a memory (input / 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from torch import Generator, Tensor
from torch.nn import functional

from sssflow.contracts.prompts import ObjectPrompts, SlicePrompt
from sssflow.sam.geometry import OUTSIDE_LOGIT, full_window
from sssflow.sam.heads import (
    FeatureMaps,
    attend,
    choose,
    decode,
    no_points,
    remember,
    without_memory,
)
from sssflow.sam.hints import carried_hint
from sssflow.sam.memory_bank import BankEntry, ClassBanks, SelfSortingBank
from sssflow.sam.prompt_arrays import group_by_points, sparse_and_dense
from sssflow.sam.promptable import Prompt

Floats = NDArray[np.float32]
MemoryKind = Literal["self_sorting", "temporal", "none"]


@dataclass(frozen=True)
class ClipMasks:
    """Masks of n objects on t slices.

    Attributes:
        class_index: Class of each object.
        logits_ntyx: Mask logits at a quarter of the input size; above 0 is inside.
        iou_nt: Predicted IoU.
        score_nt: Logit that the object is on the slice.
        answered_nt: False where no answer was asked for (memory `none`); its values are zero.
        entries: Class and memory of every answered slice, for the banks.
    """

    class_index: tuple[int, ...]
    logits_ntyx: Tensor
    iou_nt: Tensor
    score_nt: Tensor
    answered_nt: Tensor
    entries: tuple[tuple[int, BankEntry], ...]

    def merged_logits(
        self, class_count: int, size_hw: tuple[int, int], *, present_only: bool
    ) -> Tensor:
        """Logits (t, k, h, w): background 0, each object its mask, every other class far below.

        So is an object on the slices where it was not asked for. The arg-max is that of the
        objects' logits against 0 (methods.md A.7).

        Args:
            class_count: k.
            size_hw: Rows h and columns w of the result.
            present_only: Take an object off the slices where its score says that it is absent.
        """
        n, t, y, x = self.logits_ntyx.shape
        flat = self.logits_ntyx.float().reshape(n * t, 1, y, x)
        large = functional.interpolate(flat, size=size_hw, mode="bilinear", align_corners=False)
        planes = large.reshape(n, t, *size_hw)
        kept = self.answered_nt & (self.score_nt > 0) if present_only else self.answered_nt
        planes = torch.where(kept[..., None, None], planes, OUTSIDE_LOGIT)
        empty = torch.full_like(planes[0], OUTSIDE_LOGIT)
        by_class = {k: planes[i] for i, k in enumerate(self.class_index)}
        rest = [by_class.get(k, empty) for k in range(1, class_count)]
        return torch.stack([torch.zeros_like(empty), *rest], dim=1)

    def asked_tk(self, class_count: int) -> Tensor:
        """Which of k classes were asked for on which slice; the background wherever any was."""
        asked = self.answered_nt.new_zeros((self.answered_nt.shape[1], class_count))
        for row, number in enumerate(self.class_index):
            asked[:, number] = self.answered_nt[row]
        asked[:, 0] = self.answered_nt.any(0)
        return asked


@dataclass(frozen=True)
class MemorySettings:
    """How slices without a prompt are reached.

    Attributes:
        kind: See the head of this file; none: they are not.
        draws: Memories beside that of the nearest prompted slice.
        hints: Carry the mask of the neighbouring slice in the mask input, as nano was trained.
    """

    kind: MemoryKind
    draws: int
    hints: bool


@dataclass(frozen=True)
class _Answer:
    """What was found for one object on one slice; tensors with a leading axis of one."""

    logits_1yx: Tensor
    iou_1: Tensor
    score_1: Tensor
    memory_1cyx: Tensor
    position_1cyx: Tensor
    embedding_d: Tensor

    def entry(self, name: int) -> BankEntry:
        return BankEntry(
            self.memory_1cyx[0],
            self.position_1cyx[0],
            self.embedding_d,
            float(self.iou_1.detach().clamp(0, 1)),
            name,
        )


@dataclass
class _Clip:
    """The clip at work; `found` grows object by object and slice by slice."""

    model: SAM2Base
    features: FeatureMaps
    grey_tyx: Floats
    objects: Sequence[ObjectPrompts]
    banks: ClassBanks | None
    settings: MemorySettings
    generator: Generator
    found: dict[tuple[int, int], _Answer] = field(default_factory=dict)


def segment_clip(
    model: SAM2Base,
    features: FeatureMaps,
    grey_tyx: Floats,
    objects: Sequence[ObjectPrompts],
    settings: MemorySettings,
    *,
    banks: ClassBanks | None,
    generator: Generator,
) -> ClipMasks:
    """Masks of all objects on all slices of a clip.

    Args:
        model: Set to the input size that the features come from.
        features: Of the t slices.
        grey_tyx: The slices on the mask grid, in [0, 1], for hints.
        objects: One or more, with prompts in pixels of the model's input.
        settings: How memory is used.
        banks: Read for `self_sorting`, never written; None: the clip's own prompted slices alone.
        generator: Of the draws.
    """
    clip = _Clip(model, features, grey_tyx, objects, banks, settings, generator)
    _prompted(clip)
    if settings.kind != "none":
        for pairs in _outwards(clip):
            _recalled(clip, pairs)
    return _collected(clip)


def _prompted(clip: _Clip) -> None:
    pairs = [(n, p.slice_index) for n, o in enumerate(clip.objects) for p in o.slices]
    prompts = [_prompt(p) for o in clip.objects for p in o.slices]
    side = int(clip.model.image_size)
    for members in group_by_points(prompts):
        chosen = [pairs[i] for i in members]
        here = clip.features.take(_rows(clip, chosen))
        points, dense = sparse_and_dense(
            [prompts[i] for i in members],
            full_window((side, side)),
            side,
            hints=clip.settings.hints,
            grey_yx=clip.grey_tyx[[t for _, t in chosen]],
        )
        tokens = None if points is None else (_to(clip, points[0]), _to(clip, points[1]))
        mask_prompt = None if dense is None else _to(clip, dense[:, None])
        count = prompts[members[0]].point_count
        _decode(
            clip, chosen, without_memory(clip.model, here), here, tokens, mask_prompt, count=count
        )


def _outwards(clip: _Clip) -> list[list[tuple[int, int]]]:
    """Pairs (object, slice) without a prompt, in rounds of equal distance to a prompted slice."""
    rounds: dict[int, list[tuple[int, int]]] = {}
    for n, item in enumerate(clip.objects):
        own = [p.slice_index for p in item.slices]
        for t in range(len(clip.features)):
            distance = min(abs(t - s) for s in own)
            if distance:
                rounds.setdefault(distance, []).append((n, t))
    return [rounds[d] for d in sorted(rounds)]


def _recalled(clip: _Clip, pairs: list[tuple[int, int]]) -> None:
    """One slice of each object from memory; the slice before it on its way is already there."""
    here = clip.features.take(_rows(clip, pairs))
    columns = list(zip(*(_memories(clip, n, t) for n, t in pairs), strict=True))
    conditioned = attend(
        clip.model,
        here,
        [torch.stack([m for m, _, _ in column]) for column in columns],
        [torch.stack([p for _, p, _ in column]) for column in columns],
        [column[0][2] for column in columns],
    )
    device = here.coarse_bcyx.device
    hint = _hint(clip, pairs) if clip.settings.hints else None
    _decode(clip, pairs, conditioned, here, no_points(len(pairs), device), hint, count=0)


def _memories(clip: _Clip, n: int, t: int) -> list[tuple[Tensor, Tensor, int]]:
    """Memory, its position code, and its place in time, of 1 + `draws` memories."""
    nearest = _nearest(clip, n, t)
    conditioning = clip.model.num_maskmem - 1
    first = clip.found[n, nearest]
    out = [(first.memory_1cyx[0], first.position_1cyx[0], conditioning)]
    if clip.settings.kind == "temporal":
        step = 1 if nearest > t else -1
        for distance in range(1, clip.settings.draws + 1):
            # Beyond the prompted slice there is nothing newer: it is repeated.
            at = t + step * min(distance, abs(nearest - t))
            seen = clip.found[n, at]
            place = min(distance, conditioning) - 1
            out.append((seen.memory_1cyx[0], seen.position_1cyx[0], place))
        return out
    own = [clip.found[n, p.slice_index].entry(p.slice_index) for p in clip.objects[n].slices]
    kept = () if clip.banks is None else clip.banks.of(clip.objects[n].class_index).entries
    query = clip.features.coarse_bcyx[t].flatten()
    drawn = SelfSortingBank((*kept, *own)).draw(query, clip.settings.draws, clip.generator)
    return [
        *out,
        *((_like(e.memory_cyx, query), _like(e.position_cyx, query), conditioning) for e in drawn),
    ]


def _nearest(clip: _Clip, n: int, t: int) -> int:
    """The nearest prompted slice of an object; of two, the lower one."""
    return min((p.slice_index for p in clip.objects[n].slices), key=lambda s: (abs(t - s), s))


def _hint(clip: _Clip, pairs: list[tuple[int, int]]) -> Tensor:
    before = [(n, t + (1 if _nearest(clip, n, t) > t else -1)) for n, t in pairs]
    logits = torch.stack([clip.found[pair].logits_1yx for pair in before]).detach().float()
    drawn = carried_hint(
        logits.cpu().numpy(),
        clip.grey_tyx[[t for _, t in before]],
        clip.grey_tyx[[t for _, t in pairs]],
    )
    return _to(clip, drawn)


def _decode(
    clip: _Clip,
    pairs: list[tuple[int, int]],
    conditioned_rcyx: Tensor,
    here: FeatureMaps,
    points: tuple[Tensor, Tensor] | None,
    mask_prompt_r1yx: Tensor | None,
    *,
    count: int,
) -> None:
    out = decode(clip.model, conditioned_rcyx, here, points, mask_prompt_r1yx)
    choice = choose(clip.model, out, point_count=count)
    kept = remember(clip.model, here, choice, out.score_n1, from_points=count > 0)
    memory, position = kept["maskmem_features"], kept["maskmem_pos_enc"][-1]
    for row, pair in enumerate(pairs):
        at = slice(row, row + 1)
        clip.found[pair] = _Answer(
            choice.logits_n1yx[row],
            choice.iou_n1[row],
            out.score_n1[row],
            memory[at],
            position[at],
            conditioned_rcyx[row].detach().flatten(),
        )


def _collected(clip: _Clip) -> ClipMasks:
    empty_1yx = torch.zeros_like(next(iter(clip.found.values())).logits_1yx)
    nothing_1 = empty_1yx.new_zeros(1)
    count, length = len(clip.objects), len(clip.features)

    def table(name: str, default: Tensor) -> Tensor:
        rows = [
            [
                getattr(clip.found[n, t], name) if (n, t) in clip.found else default
                for t in range(length)
            ]
            for n in range(count)
        ]
        return torch.stack([torch.cat(row) for row in rows])

    answered = [[(n, t) in clip.found for t in range(length)] for n in range(count)]
    return ClipMasks(
        tuple(o.class_index for o in clip.objects),
        table("logits_1yx", empty_1yx),
        table("iou_1", nothing_1),
        table("score_1", nothing_1),
        torch.tensor(answered, device=empty_1yx.device),
        tuple((clip.objects[n].class_index, a.entry(t)) for (n, t), a in clip.found.items()),
    )


def _rows(clip: _Clip, pairs: Sequence[tuple[int, int]]) -> Tensor:
    return torch.tensor([t for _, t in pairs], device=clip.features.coarse_bcyx.device)


def _to(clip: _Clip, values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(values).to(clip.features.coarse_bcyx.device)


def _like(value: Tensor, other: Tensor) -> Tensor:
    return value.to(other.device)


def _prompt(given: SlicePrompt) -> Prompt:
    return Prompt(
        box_xyxy_px=given.box_xyxy_px,
        points_xy_px=given.points_xy_px,
        point_labels=tuple(int(v) for v in given.point_labels),
    )
