"""From a normalised volume to probabilities or labels on the volume's own grid.

A 2-D network sees resized slices, a 3-D network (`preprocessing.patch`) overlapping patches.

Axis letters: s slices, k classes, h rows, w columns of the case; b slices in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sssflow.contracts.model import PatchRule, Preprocessing
from sssflow.networks.base import SegmentationNet
from sssflow.networks.volumes import resize_volume, scaled_shape, slide


def resize_images(
    image_bchw: Tensor, size_hw: tuple[int, int], interpolation: str = "linear"
) -> Tensor:
    """Resize slices; `linear` is antialiased when it shrinks, `nearest` is exact-nearest."""
    if tuple(image_bchw.shape[-2:]) == tuple(size_hw):
        return image_bchw
    if interpolation == "nearest":
        return functional.interpolate(image_bchw, size=size_hw, mode="nearest-exact")
    return functional.interpolate(
        image_bchw, size=size_hw, mode="bilinear", align_corners=False, antialias=True
    )


@torch.no_grad()
def predict_probabilities(
    net: SegmentationNet,
    volume_shw: NDArray[np.float32],
    preprocessing: Preprocessing,
    *,
    batch_slices: int = 16,
) -> NDArray[np.float32]:
    """Softmax probabilities (k, s, h, w) on the grid of `volume_shw`.

    Args:
        net: In evaluation mode; its device is used.
        volume_shw: Intensities after `volume.intensity.normalise`.
        preprocessing: Size and interpolations the net was trained with.
        batch_slices: Slices per forward pass; a patch counts its slices, one patch always goes.
    """
    if preprocessing.patch is not None:
        found = _patchwise(net, volume_shw, preprocessing, preprocessing.patch, batch_slices)
        grid = _grid(volume_shw)
        on_grid = resize_volume(found[None], grid, preprocessing.prediction_interpolation)[0]
        return np.ascontiguousarray(on_grid.cpu().numpy())
    parts = [
        logits.softmax(1).cpu().numpy()
        for logits in _logits_on_grid(net, volume_shw, preprocessing, batch_slices)
    ]
    probabilities: NDArray[np.float32] = np.concatenate(parts).transpose(1, 0, 2, 3)
    return np.ascontiguousarray(probabilities)


@torch.no_grad()
def predict_labels(
    net: SegmentationNet,
    volume_shw: NDArray[np.float32],
    preprocessing: Preprocessing,
    *,
    batch_slices: int = 16,
) -> NDArray[np.uint8]:
    """Arg-max labels (s, h, w) on the grid of `volume_shw`; arguments as `predict_probabilities`.

    With `prediction_interpolation: nearest` the arg-max is taken at network size and the labels
    are resized (SSL4MIS); else the logits (3-D: probabilities) are resized and the arg-max is
    taken last.
    """
    if preprocessing.patch is not None:
        probability = predict_probabilities(
            net, volume_shw, preprocessing, batch_slices=batch_slices
        )
        label: NDArray[np.uint8] = probability.argmax(0).astype(np.uint8)
        return label
    parts: list[NDArray[np.uint8]] = [
        logits.argmax(1).to(torch.uint8).cpu().numpy()
        for logits in _logits_on_grid(net, volume_shw, preprocessing, batch_slices)
    ]
    return np.concatenate(parts)


def _patchwise(
    net: SegmentationNet,
    volume_shw: NDArray[np.float32],
    preprocessing: Preprocessing,
    rule: PatchRule,
    batch_slices: int,
) -> Tensor:
    """Probabilities (k, s, h, w) at the network's scale."""
    device = next(net.parameters()).device
    volume = torch.from_numpy(np.ascontiguousarray(volume_shw)).to(device)
    shape = scaled_shape(volume_shw.shape, rule)
    scaled = resize_volume(volume[None, None], shape, preprocessing.image_interpolation)[0, 0]
    return slide(net, scaled, rule, batch=max(1, batch_slices // rule.size_shw[0]))


def _grid(volume_shw: NDArray[np.float32]) -> tuple[int, int, int]:
    s, h, w = volume_shw.shape
    return s, h, w


def _logits_on_grid(
    net: SegmentationNet,
    volume_shw: NDArray[np.float32],
    preprocessing: Preprocessing,
    batch_slices: int,
) -> Iterator[Tensor]:
    device = next(net.parameters()).device
    grid_hw = (volume_shw.shape[1], volume_shw.shape[2])
    for start in range(0, volume_shw.shape[0], batch_slices):
        image = torch.from_numpy(np.ascontiguousarray(volume_shw[start : start + batch_slices]))
        resized = resize_images(
            image.unsqueeze(1).to(device), preprocessing.size_hw, preprocessing.image_interpolation
        )
        logits = net(resized).float()
        # Nearest resizing of logits picks whole pixels, so the arg-max after it equals
        # nearest resizing of the labels.
        yield resize_images(logits, grid_hw, preprocessing.prediction_interpolation)
