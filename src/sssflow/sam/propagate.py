"""From prompts on a few slices to soft masks on all slices of a volume.

Prompted slices are segmented alone and become conditioning slices; SAM-2's memory carries each
object on from them, upwards from the first and downwards from the last, so that slices between two
prompted ones are reached from both sides (their logits are averaged). A volume turned upside down
gives the masks turned upside down. In a chain, or with a backend without memory, the mask of one
slice prompts the next instead: its box and its deepest point.

Letters: k classes without background, s slices, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sssflow.contracts.masks import ObjectScores
from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, SlicePrompt
from sssflow.sam.config import PropagationConfig, SamConfig
from sssflow.sam.geometry import OUTSIDE_LOGIT, Window, full_window, prompts_window
from sssflow.sam.guide import guided_prompts, prompt_from_mask
from sssflow.sam.promptable import Features, Prompt, Promptable, PromptableVideo, SliceMask

Floats = NDArray[np.float32]

_CERTAIN = 10.0


@dataclass(frozen=True)
class VolumeMasks:
    """Result for one case.

    Attributes:
        probability_kshw: uint8, value / 255 = probability; see `merge`.
        objects: Scores of the prompted classes, sorted by class.
    """

    probability_kshw: NDArray[np.uint8]
    objects: tuple[ObjectScores, ...]


@dataclass
class _Found:
    """Answers for one object; a slice can be reached twice."""

    answers: dict[int, list[SliceMask]]

    def add(self, index: int, mask: SliceMask) -> None:
        self.answers.setdefault(index, []).append(mask)


def segment_volume(
    model: Promptable,
    volume_shw: Floats,
    prompts: CasePrompts,
    class_count: int,
    config: SamConfig,
    coarse_shw: NDArray[np.uint8] | None = None,
) -> VolumeMasks:
    """Masks of all prompted objects on all slices.

    Args:
        model: A backend; with memory if it is a `PromptableVideo`.
        volume_shw: Grey values in [0, 1].
        prompts: Objects of the case, in its own grid.
        class_count: Classes with the background; class c is plane c - 1 of the result.
        config: Window, use of points, propagation.
        coarse_shw: Labels of the coarse masks that the prompts come from; used with
            `propagation.mode: coarse`, which falls back to `memory` without them.
    """
    s, h, w = volume_shw.shape
    shape = (class_count - 1, s, h, w)
    if not prompts.objects:
        return VolumeMasks(np.zeros(shape, np.uint8), ())
    window = case_window(prompts, config)
    reach = _reach(prompts.objects, s, config.propagation)
    features = model.encode(volume_shw[reach.start : reach.stop], window)
    found = []
    for item in prompts.objects:
        if config.propagation.mode == "coarse" and coarse_shw is not None:
            found.append(_guided(model, features, item, reach, config, coarse_shw))
        else:
            found.append(follow(model, features, item, reach, config, (h, w)))
    probability_kshw = np.zeros(shape, np.uint8)
    # Slice by slice: answers are small, logits of all classes at full size are not.
    for index in range(s):
        logits = np.full((class_count - 1, 1, h, w), OUTSIDE_LOGIT, np.float32)
        present = np.zeros((class_count - 1, 1), np.bool_)
        for item, answers in zip(prompts.objects, found, strict=True):
            here = answers.get(index, [])
            score = float(np.mean([a.object_score for a in here] or [-np.inf]))
            if score > config.propagation.presence_logit:
                present[item.class_index - 1] = True
                low = np.stack([a.logits_yx for a in here]).mean(axis=0, dtype=np.float32)
                logits[item.class_index - 1, 0] = _paste(window, low, (h, w))
        if present.any():
            probability_kshw[:, index] = merge(logits, present)[:, 0]
    pairs = zip(prompts.objects, found, strict=True)
    return VolumeMasks(probability_kshw, tuple(_scores(item, f, s) for item, f in pairs))


def case_window(prompts: CasePrompts, config: SamConfig) -> Window:
    """The window of the slices that SAM-2 sees: one for all slices and objects of a case."""
    h, w = prompts.shape_shw[1:]
    if config.roi == "full":
        return full_window((h, w))
    every = (p for o in prompts.objects for p in o.slices)
    return prompts_window(every, (h, w), margin=config.roi_margin, min_px=config.roi_min_px)


def follow(
    model: Promptable,
    features: Features,
    item: ObjectPrompts,
    reach: range,
    config: SamConfig,
    shape_hw: tuple[int, int],
) -> dict[int, list[SliceMask]]:
    """Answers for one object by slice of the volume; prompted slices have one, others up to two.

    `features` hold the slices of `reach`. A direction ends at the reach of this object, or after
    `patience` slices in a row without the object.
    """
    prompts = {p.slice_index - reach.start: to_prompt(p, config.use_points) for p in item.slices}
    own = _reach([item], reach.stop, config.propagation)
    limits = range(max(own.start - reach.start, 0), own.stop - reach.start)
    found = _Found({})
    carrier = _carrier(model, config, shape_hw)
    memory: Any = None
    if isinstance(carrier, PromptableVideo):
        memory, masks = carrier.begin(features, prompts)
    else:
        masks = {i: model.segment(features, i, [p])[0] for i, p in prompts.items()}
    for index, mask in masks.items():
        found.add(index, mask)
    if config.propagation.mode != "prompted_only":
        upwards = range(min(prompts) + 1, limits.stop)
        downwards = range(max(prompts) - 1, limits.start - 1, -1)
        for path, reverse in ((upwards, False), (downwards, True)):
            _walk(carrier, features, memory, masks, path, reverse, config.propagation, found)
    return {index + reach.start: answers for index, answers in sorted(found.answers.items())}


def _guided(
    model: Promptable,
    features: Features,
    item: ObjectPrompts,
    reach: range,
    config: SamConfig,
    coarse_shw: NDArray[np.uint8],
) -> dict[int, list[SliceMask]]:
    """Each slice by itself, prompted by PCSW and by the coarse mask of the object."""
    own = _reach([item], len(coarse_shw), config.propagation)
    prompts = guided_prompts(
        coarse_shw == item.class_index,
        {p.slice_index: to_prompt(p, config.use_points) for p in item.slices},
        own,
        features.window,
        model.input_size,
    )
    return {
        index: model.segment(features, index - reach.start, [prompt])
        for index, prompt in prompts.items()
    }


@dataclass(frozen=True)
class _Chain:
    """Carries an object by prompting each slice with the mask of the slice before."""

    model: Promptable
    shape_hw: tuple[int, int]
    min_area_share: float

    def follow_on(
        self, features: Features, last: SliceMask, index: int, *, beyond: bool
    ) -> SliceMask:
        """The mask of slice `index`; absent (score below 0) if nothing to go on is left."""
        whole = _paste(features.window, last.logits_yx, self.shape_hw)
        prompt = prompt_from_mask(whole > 0)
        if prompt is None:
            return replace(last, object_score=-_CERTAIN, predicted_iou=0.0)
        (mask,) = self.model.segment(features, index, [prompt])
        before = np.count_nonzero(last.logits_yx > 0)
        if beyond and np.count_nonzero(mask.logits_yx > 0) < self.min_area_share * before:
            return replace(mask, object_score=min(mask.object_score, -_CERTAIN))
        return mask


def _carrier(
    model: Promptable, config: SamConfig, shape_hw: tuple[int, int]
) -> PromptableVideo | _Chain:
    if isinstance(model, PromptableVideo) and config.propagation.mode != "chain":
        return model
    return _Chain(model, shape_hw, config.propagation.min_area_share)


def _walk(
    carrier: PromptableVideo | _Chain,
    features: Features,
    memory: Any,
    prompted: Mapping[int, SliceMask],
    path: Iterable[int],
    reverse: bool,
    config: PropagationConfig,
    found: _Found,
) -> None:
    absent = 0
    last = prompted[max(prompted) if reverse else min(prompted)]
    end = min(prompted) if reverse else max(prompted)
    for index in path:
        if index in prompted:
            last, absent = prompted[index], 0
            continue
        beyond = index < end if reverse else index > end
        if isinstance(carrier, _Chain):
            last = carrier.follow_on(features, last, index, beyond=beyond)
        else:
            memory, last = carrier.track(features, memory, index, reverse=reverse)
        found.add(index, last)
        absent = 0 if last.object_score > config.presence_logit else absent + 1
        if beyond and absent >= config.patience:
            return


def to_prompt(prompt: SlicePrompt, use_points: bool) -> Prompt:
    """The prompt of a slice; points are kept where there is no box, whatever `use_points` says."""
    keep = use_points or prompt.box_xyxy_px is None
    return Prompt(
        box_xyxy_px=prompt.box_xyxy_px,
        points_xy_px=prompt.points_xy_px if keep else (),
        point_labels=tuple(int(v) for v in prompt.point_labels) if keep else (),
    )


def merge(logits_kshw: Floats, present_ks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """One probability per class, so that the classes and the background share each voxel.

    The background has logit 0 and p = softmax over background and present classes: with one class
    that is its sigmoid; where two objects claim a voxel, the sum stays at most 1 and the stronger
    claim wins, which is the arg-max of logits against 0 (methods.md A.7). Rounded to 1/255.
    """
    logits = np.where(present_ks[:, :, None, None], logits_kshw, -np.inf)
    top = np.maximum(logits.max(axis=0), 0)
    parts = np.exp(logits - top)
    total = parts.sum(axis=0) + np.exp(-top)
    return np.asarray(np.rint(parts / total * 255), dtype=np.uint8)


def _reach(objects: Sequence[ObjectPrompts], slices: int, config: PropagationConfig) -> range:
    """Slices that any of the objects can be found on."""
    prompted = [p.slice_index for o in objects for p in o.slices]
    if config.mode == "prompted_only":
        return range(min(prompted), max(prompted) + 1)
    if config.max_distance is None:
        return range(slices)
    first, last = min(prompted) - config.max_distance, max(prompted) + config.max_distance
    return range(max(0, first), min(slices, last + 1))


def _paste(window: Window, logits_yx: NDArray[Any], shape_hw: tuple[int, int]) -> Floats:
    pasted: Floats = window.paste(torch.from_numpy(logits_yx)[None, None], shape_hw)[0].numpy()
    return pasted


def _scores(
    item: ObjectPrompts, found: Mapping[int, Sequence[SliceMask]], slices: int
) -> ObjectScores:
    prompted = {p.slice_index for p in item.slices}

    def mean(index: int, name: str) -> float | None:
        answers = found.get(index)
        return None if not answers else float(np.mean([getattr(a, name) for a in answers]))

    return ObjectScores(
        class_index=item.class_index,
        predicted_iou=tuple(mean(i, "predicted_iou") for i in range(slices)),
        object_score=tuple(mean(i, "object_score") for i in range(slices)),
        prompted=tuple(i in prompted for i in range(slices)),
    )
