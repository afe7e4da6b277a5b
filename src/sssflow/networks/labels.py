"""True labels at the size that a network sees.

Axis letters: s slices, h rows, w columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sssflow.contracts.model import Preprocessing
from sssflow.networks.volumes import scaled_shape


def labels_at_network_size(
    label_shw: Tensor, preprocessing: Preprocessing, class_count: int
) -> Tensor:
    """Labels of a case where its resized image has its pixels.

    Every class is read between its pixels, as a soft mask, at the centres of the new ones, and the
    strongest is kept; of equals, the one of lower number. A nearest label would lie up to half a
    source pixel beside an image that was averaged over the same pixels, and so would all that is
    learnt from it. Averaging the masks as well would lose thin structures. With
    `image_interpolation: nearest`, SSL4MIS's rule, the labels are resized so too.

    Args:
        label_shw: uint8, on the case's own grid.
        preprocessing: Slices are brought to `size_hw`; with `patch`, the volume to its scale.
        class_count: With the background.

    Returns:
        uint8; (s, h, w) at network size, `label_shw` itself where that is its size.
    """
    if preprocessing.patch is None:
        size: tuple[int, ...] = (label_shw.shape[0], *preprocessing.size_hw)
    else:
        size = scaled_shape(label_shw.shape, preprocessing.patch)
    if tuple(label_shw.shape) == size:
        return label_shw
    nearest = preprocessing.image_interpolation == "nearest"
    best = _resized((label_shw == 0).float(), size, nearest=nearest)
    found = torch.zeros(best.shape, dtype=torch.uint8, device=label_shw.device)
    # Class by class: all at once would take as many volumes of floats as there are classes.
    for index in range(1, class_count):
        mask_shw = label_shw == index
        if mask_shw.any():
            share = _resized(mask_shw.float(), size, nearest=nearest)
            found[share > best] = index
            best = torch.maximum(best, share)
    return found


def _resized(mask_shw: Tensor, size: tuple[int, ...], *, nearest: bool) -> Tensor:
    mask = mask_shw[None, None]
    if nearest:
        return functional.interpolate(mask, size, mode="nearest-exact")[0, 0]
    # Where the slices stay, reading between voxels of three axes is reading between pixels of two.
    return functional.interpolate(mask, size, mode="trilinear", align_corners=False)[0, 0]
