"""PCSW written out as it is described: loops over classes, lengths and windows; slow on purpose.

It shares no code with sssflow.prompts and is the yardstick of its results and of its speed.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sssflow.contracts.prompts import ObjectPrompts, SlicePrompt
from sssflow.prompts.config import PcswConfig

_RANK = {6: 1, 18: 2, 26: 3}
Array = NDArray[Any]


def literal_prompts(
    labels_shw: Array, config: PcswConfig, class_names: tuple[str, ...]
) -> tuple[ObjectPrompts, ...]:
    found = []
    for k, name in enumerate(class_names):
        if k == 0:
            continue
        tau = config.tau_per_class.get(name, config.tau_per_class.get(str(k), config.tau))
        prompts = _one_class(labels_shw == k, k, tau, config)
        if prompts is not None:
            found.append(prompts)
    return tuple(found)


def _one_class(mask: Array, k: int, tau: float, config: PcswConfig) -> ObjectPrompts | None:
    slices, height, width = mask.shape
    if not mask.any():
        if config.on_empty == "skip":
            return None
        centre = ((width - 1) / 2, (height - 1) / 2)
        prompt = SlicePrompt(
            slice_index=slices // 2,
            box_xyxy_px=(0, 0, width - 1, height - 1),
            points_xy_px=() if config.point == "none" else (centre,),
            point_labels=() if config.point == "none" else (1,),
        )
        return _object(k, 0.0, -1, 0, False, 0, [prompt])
    window = _search(mask, tau, config)
    if window is None:
        if config.fallback == "skip":
            return None
        areas = [int(mask[i].sum()) if _is_solid(mask[i], config) else 0 for i in range(slices)]
        if not any(areas):
            return None
        i = areas.index(max(areas))
        return _object(k, 0.0, -1, 0, False, areas[i], [_slice_prompt(mask[i], i, config, False)])
    continuity, start, length, kept = window
    areas = [int(kept[j].sum()) for j in range(length)]
    anchor = areas.index(max(areas))
    prompts = []
    for j in range(length):
        on_grid = (
            j == anchor
            if config.prompt_slices == "single"
            else (abs(j - anchor) % config.prompt_freq == 0)
        )
        if on_grid and areas[j] > 0:
            prompts.append(_slice_prompt(kept[j], start + j, config, True))
    return _object(k, continuity, start, length, True, int(kept.sum()), prompts)


def _is_solid(mask_hw: Array, config: PcswConfig) -> bool:
    in_plane = ndimage.generate_binary_structure(2, min(_RANK[config.connectivity], 2))
    pieces, _ = ndimage.label(mask_hw, structure=in_plane)
    return bool(np.bincount(pieces.ravel())[1:].max(initial=0) >= config.min_component_voxels)


def _search(mask: Array, tau: float, config: PcswConfig) -> tuple[float, int, int, Array] | None:
    passed = []
    for length in _lengths(mask.shape[0], config.search):
        for start in range(mask.shape[0] - length + 1):
            part = mask[start : start + length]
            foreground = int(part.sum())
            if foreground == 0:
                continue
            structure = ndimage.generate_binary_structure(3, _RANK[config.connectivity])
            labelled, count = ndimage.label(part, structure=structure)
            sizes = np.bincount(labelled.ravel(), minlength=count + 1)[1:].tolist()
            largest = max(sizes)
            continuity = largest / foreground
            if continuity < tau or largest < config.min_component_voxels:
                continue
            firsts = {
                int(np.flatnonzero(labelled == n + 1)[0]): n + 1
                for n in range(count)
                if sizes[n] == largest
            }
            kept = labelled == firsts[min(firsts)]
            passed.append((Fraction(largest, foreground), foreground, length, start, kept))
            if config.selection == "first":
                break
        if passed and (config.selection == "first" or config.best_over == "length"):
            break
    if not passed:
        return None
    if config.selection == "best":
        passed.sort(key=lambda w: (-w[0], -w[1], w[2], w[3]))
    share, _, length, start, kept = passed[0]
    return float(share), start, length, kept


def _lengths(slices: int, search: str) -> list[int]:
    low = min(slices, max(2, slices // 3))
    high = min(slices, max(3, slices // 2))
    median = (low + high) // 2
    if search == "upward":
        return list(range(median, high + 1))
    lengths = [median]
    for step in range(1, slices):
        lengths += [n for n in (median + step, median - step) if low <= n <= high]
    return lengths


def _slice_prompt(mask_hw: Array, i: int, config: PcswConfig, accepted: bool) -> SlicePrompt:
    height, width = mask_hw.shape
    ys, xs = np.nonzero(mask_hw)
    box = (int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max()))
    m = config.box_margin_px
    wide = (
        max(0, box[0] - m),
        max(0, box[1] - m),
        min(width - 1, box[2] + m),
        min(height - 1, box[3] + m),
    )
    mean = (Fraction(int(xs.sum()), xs.size), Fraction(int(ys.sum()), ys.size))
    points: tuple[tuple[float, float], ...] = ()
    if config.point == "interior":
        points = (_deepest(mask_hw, mean),)
    elif config.point == "center" and accepted:
        points = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),)
    elif config.point == "center":
        points = ((float(mean[0]), float(mean[1])),)
    return SlicePrompt(
        slice_index=i,
        box_xyxy_px=wide,
        points_xy_px=points,
        point_labels=(1,) * len(points),
    )


def _deepest(mask_hw: Array, mean: tuple[Fraction, Fraction]) -> tuple[float, float]:
    # Distance to the nearest pixel that is not of the object; beyond the image none is.
    depth = ndimage.distance_transform_edt(np.pad(mask_hw, 1))[1:-1, 1:-1]
    squared = np.rint(depth**2)
    ties = [(int(x), int(y)) for y, x in np.argwhere(squared == squared.max())]
    x, y = min(ties, key=lambda p: ((p[0] - mean[0]) ** 2 + (p[1] - mean[1]) ** 2, p[1], p[0]))
    return float(x), float(y)


def _object(
    k: int,
    continuity: float,
    start: int,
    length: int,
    accepted: bool,
    voxels: int,
    prompts: list[SlicePrompt],
) -> ObjectPrompts:
    return ObjectPrompts(
        class_index=k,
        continuity=continuity,
        window_start=start,
        window_length=length,
        accepted=accepted,
        component_voxels=voxels,
        slices=tuple(prompts),
    )
