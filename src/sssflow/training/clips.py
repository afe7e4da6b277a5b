"""Clips: runs of neighbouring slices of one volume, their views, and prompts that go with them.

Letters: c clips, t slices of a clip, b = c t slices, h rows, w columns, g grid coordinates (x, y)
as in `views`. A clip passes the functions of `views` as one sample with t channels, so that its
slices share every random number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Generator, Tensor

from sssflow.contracts.prompts import ObjectPrompts, SlicePrompt
from sssflow.errors import DataError
from sssflow.training.config import AugmentationConfig
from sssflow.training.data import (
    Batch,
    LabelledBatch,
    Slices,
    TrainingData,
    batch_indices,
)
from sssflow.training.distributed import ALONE, World
from sssflow.training.views import Geometry, chosen, strong_view, weak_geometry


@dataclass(frozen=True)
class ClipPlan:
    """How many clips of how many slices a step reads."""

    slices: int
    labelled: int
    unlabelled: int


def clip_indices(
    case_ids: Sequence[str], length: int, clips: int, step: int, *, seed: int, stream: str
) -> Tensor:
    """Slice numbers (clips * length) of step `step`, clip after clip.

    A closed form of (seed, stream, step). Every place where a clip can begin is read once before
    any is read twice; a shorter volume is one clip, its last slice repeated.
    """
    starts: list[tuple[int, int]] = []
    first = 0
    for _, run in groupby(case_ids):
        count = sum(1 for _ in run)
        last = first + count - 1
        starts += [(at, last) for at in range(first, first + max(1, count - length + 1))]
        first += count
    drawn = batch_indices(len(starts), clips, step, seed=seed, stream=f"clips of {stream}")
    index = [min(starts[i][0] + k, starts[i][1]) for i in drawn.tolist() for k in range(length)]
    return torch.tensor(index)


def read_clips(
    data: TrainingData, step: int, plan: ClipPlan, *, seed: int, world: World = ALONE
) -> Batch:
    """This process's part of the clips of `step`; slices of a clip lie side by side.

    Raises:
        DataError: A stream is missing.
    """
    labelled, unlabelled = data.labelled, data.unlabelled
    if not isinstance(labelled, Slices) or not isinstance(unlabelled, Slices):
        raise DataError("Clips need a labelled and an unlabelled stream of slices.")
    first, second = (
        world.part(clip_indices(s.case_ids, plan.slices, clips, step, seed=seed, stream=name))
        for s, clips, name in (
            (labelled, plan.labelled, "labelled"),
            (unlabelled, plan.unlabelled, "unlabelled"),
        )
    )
    whole = replace(labelled, foreground_probability=0.0)  # a clip's slices stay side by side
    return Batch(
        whole.labelled_batch(first, seed=seed), unlabelled.unlabelled_batch(second, seed=seed)
    )


def as_clips(value_bchw: Tensor, length: int) -> Tensor:
    """(c, t, h, w) of slices (b, 1, h, w) or (b, h, w)."""
    return value_bchw.reshape(-1, length, *value_bchw.shape[-2:])


def as_slices(clip_cthw: Tensor) -> Tensor:
    """(b, 1, h, w) of clips."""
    return clip_cthw.reshape(-1, 1, *clip_cthw.shape[-2:])


def labelled_clips(
    batch: LabelledBatch, length: int, config: AugmentationConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Image and label, both (c, t, h, w): one geometry per clip, strong intensities on a share."""
    image = as_clips(batch.image_bchw, length)
    count, _, height, width = image.shape
    geometry = weak_geometry((count, height, width), config.weak, generator)
    image = geometry.image(image)
    strong = chosen(count, config.labelled_strong_probability, generator)
    image = torch.where(
        strong[:, None, None, None], strong_view(image, config.strong, generator), image
    )
    for_slices = Geometry(geometry.grid_bhwg.repeat_interleave(length, 0))
    return image, as_clips(for_slices.label(batch.label_bhw), length)


def carry_prompts(objects: Sequence[ObjectPrompts], grid_hwg: Tensor) -> tuple[ObjectPrompts, ...]:
    """Prompts in pixels of a view, from prompts in pixels of what the view was read from.

    A box becomes the box around every pixel of the view that reads from inside it: exact for
    flips, quarter turns and crops, the usual loose box for other angles. A point becomes the pixel
    that reads nearest to it, at most one pixel away. What the view does not show is left out.

    Args:
        objects: With prompts of any slices; all slices share the geometry.
        grid_hwg: Where each pixel of the view is read from (`Geometry.grid_bhwg` of the clip).
    """
    height, width = grid_hwg.shape[:2]
    size = torch.tensor([width, height], device=grid_hwg.device)
    source_hwg = ((grid_hwg.float() + 1) * size - 1) / 2
    inside_hw = ((source_hwg >= -0.5) & (source_hwg <= size - 0.5)).all(2)
    carried = []
    for item in objects:
        slices = tuple(
            moved for p in item.slices if (moved := _carried(p, source_hwg, inside_hw)) is not None
        )
        if slices:
            carried.append(item.model_copy(update={"slices": slices}))
    return tuple(carried)


def _carried(prompt: SlicePrompt, source_hwg: Tensor, inside_hw: Tensor) -> SlicePrompt | None:
    box = None
    if prompt.box_xyxy_px is not None:
        low = source_hwg.new_tensor(prompt.box_xyxy_px[:2]) - 0.5
        high = source_hwg.new_tensor(prompt.box_xyxy_px[2:]) + 0.5
        within = ((source_hwg >= low) & (source_hwg <= high)).all(2) & inside_hw
        ys, xs = torch.nonzero(within, as_tuple=True)
        if len(xs):
            box = (float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max()))
    points, labels = [], []
    for point, label in zip(prompt.points_xy_px, prompt.point_labels, strict=True):
        away_hw = (source_hwg - source_hwg.new_tensor(point)).square().sum(2).sqrt()
        nearest = int(away_hw.argmin())
        if float(away_hw.flatten()[nearest]) <= 1:
            y, x = divmod(nearest, source_hwg.shape[1])
            points.append((float(x), float(y)))
            labels.append(label)
    if box is None and (prompt.box_xyxy_px is not None or not points):
        return None
    return SlicePrompt(
        slice_index=prompt.slice_index,
        box_xyxy_px=box,
        points_xy_px=tuple(points),
        point_labels=tuple(labels),
    )
