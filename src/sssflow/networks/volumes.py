"""Volumes and patches: scaling, padding, and the sliding window of a 3-D network.

Axis letters: b patches in one batch, k classes, s slices, h rows, w columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sssflow.contracts.model import PatchRule, SlidingWindow
from sssflow.networks.base import SegmentationNet

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

_SIGMA = 1 / 8
"""Standard deviation of the Gaussian weights as a share of the side; nnU-Net's and MONAI's."""

_LEAST_WEIGHT = 1e-3


def scaled_shape(shape_shw: Sequence[int], rule: PatchRule) -> Shape:
    """Shape of a volume after `rule.scale_shw`; no side vanishes."""
    s, h, w = (
        max(1, round(side * factor)) for side, factor in zip(shape_shw, rule.scale_shw, strict=True)
    )
    return s, h, w


def resize_volume(volume_bkshw: Tensor, shape_shw: Shape, interpolation: str = "linear") -> Tensor:
    """Resize volumes; `linear` averages areas where no side grows, `nearest` is exact-nearest."""
    before = tuple(volume_bkshw.shape[-3:])
    if before == tuple(shape_shw):
        return volume_bkshw
    if interpolation == "nearest":
        return functional.interpolate(volume_bkshw, size=shape_shw, mode="nearest-exact")
    if all(new <= old for new, old in zip(shape_shw, before, strict=True)):
        return functional.interpolate(volume_bkshw, size=shape_shw, mode="area")
    return functional.interpolate(
        volume_bkshw, size=shape_shw, mode="trilinear", align_corners=False
    )


def pad_to(volume_shw: Tensor, size_shw: Shape) -> tuple[Tensor, Box]:
    """Zeros around a volume that is smaller than `size_shw`, and where the volume lies in it.

    An odd number of missing voxels puts the larger half behind. A large enough volume is returned
    as it is.
    """
    missing = [max(0, size - side) for size, side in zip(size_shw, volume_shw.shape, strict=True)]
    before = [count // 2 for count in missing]
    s, h, w = (
        slice(start, start + side) for start, side in zip(before, volume_shw.shape, strict=True)
    )
    if not any(missing):
        return volume_shw, (s, h, w)
    margins = [(start, count - start) for start, count in zip(before, missing, strict=True)]
    flat = [margin for pair in reversed(margins) for margin in pair]
    return functional.pad(volume_shw, flat), (s, h, w)


def window_starts(side: int, patch: int, stride: int) -> list[int]:
    """First voxels of the patches along one axis: every `stride`, the last one flush with the end.

    Source: SSL4MIS's test on LA. `side` must be at least `patch`.
    """
    count = math.ceil((side - patch) / stride) + 1
    return [min(number * stride, side - patch) for number in range(count)]


def strides(rule: PatchRule) -> Shape:
    """Voxels between neighbouring patches along each axis, never more than a patch."""
    window = rule.window
    if window.stride_shw is None:
        s, h, w = (max(1, round(size * (1 - window.overlap))) for size in rule.size_shw)
    else:
        pairs = zip(window.stride_shw, rule.size_shw, strict=True)
        s, h, w = (min(stride, size) for stride, size in pairs)
    return s, h, w


def window_weights(size_shw: Shape, kind: Literal["gaussian", "uniform"]) -> Tensor:
    """Weight of every voxel of a patch (s, h, w), the largest 1 and none 0.

    gaussian: product of exp(-d^2 / (2 (n/8)^2)) per axis, d the distance from the centre.
    """
    weights = torch.ones(size_shw)
    if kind == "uniform":
        return weights
    for axis, side in enumerate(size_shw):
        distance = torch.arange(side) - (side - 1) / 2
        line = torch.exp(-0.5 * (distance / (side * _SIGMA)).square())
        shape = [1, 1, 1]
        shape[axis] = side
        weights = weights * line.view(shape)
    return (weights / weights.max()).clamp_min(_LEAST_WEIGHT)


def with_window(rule: PatchRule, window: SlidingWindow | None) -> PatchRule:
    """The rule with another window; None keeps its own."""
    return rule if window is None else rule.model_copy(update={"window": window})


@torch.no_grad()
def slide(net: SegmentationNet, volume_shw: Tensor, rule: PatchRule, *, batch: int = 1) -> Tensor:
    """Softmax probabilities (k, s, h, w) of a volume that is already scaled.

    Args:
        net: A 3-D network in evaluation mode, on the device of `volume_shw`.
        volume_shw: float32 after the intensity rule; smaller than a patch: padded with zeros.
        rule: Patch size and window.
        batch: Patches per forward pass.
    """
    padded, inside = pad_to(volume_shw, rule.size_shw)
    weights = window_weights(rule.size_shw, rule.window.weights).to(volume_shw.device)
    total = padded.new_zeros((net.class_count, *padded.shape))
    mass = padded.new_zeros(padded.shape)
    boxes = _boxes(padded.shape, rule)
    for first in range(0, len(boxes), batch):
        chosen = boxes[first : first + batch]
        patches = torch.stack([padded[box] for box in chosen])
        probability = net(patches[:, None]).float().softmax(1)
        for box, part in zip(chosen, probability, strict=True):
            total[(slice(None), *box)] += part * weights
            mass[box] += weights
    return (total / mass)[(slice(None), *inside)]


def _boxes(shape_shw: Sequence[int], rule: PatchRule) -> list[Box]:
    axes = [
        [slice(start, start + patch) for start in window_starts(side, patch, stride)]
        for side, patch, stride in zip(shape_shw, rule.size_shw, strides(rule), strict=True)
    ]
    return [(s, h, w) for s, h, w in product(*axes)]
