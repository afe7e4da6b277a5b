"""What may be done to a prediction without training anew: flips averaged, components dropped.

Axis letters: s slices, k classes, h rows, w columns of the case.
"""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.model import Preprocessing
from sssflow.networks.base import SegmentationNet
from sssflow.networks.predict import predict_probabilities

_IN_PLANE_FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))
"""Axes of (s, h, w) that are mirrored; slices keep their order."""


def flip_averaged_probabilities(
    net: SegmentationNet,
    volume_shw: NDArray[np.float32],
    preprocessing: Preprocessing,
    *,
    batch_slices: int = 16,
) -> NDArray[np.float32]:
    """Mean softmax probabilities (k, s, h, w) over the four in-plane mirror images.

    Each mirror image is predicted and mirrored back, as nnU-Net does at test time. Arguments as
    `predict_probabilities`.
    """
    parts = []
    for axes in _IN_PLANE_FLIPS:
        mirrored = np.ascontiguousarray(np.flip(volume_shw, axes))
        found = predict_probabilities(net, mirrored, preprocessing, batch_slices=batch_slices)
        parts.append(np.flip(found, tuple(axis + 1 for axis in axes)))
    return mean_probabilities(parts)


def mean_probabilities(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Mean of the probabilities of several models, all (k, s, h, w) on one grid."""
    mean: NDArray[np.float32] = np.mean(np.stack(parts), axis=0, dtype=np.float32)
    return mean


def largest_component_per_class(
    labels_shw: NDArray[np.uint8], class_count: int
) -> NDArray[np.uint8]:
    """Keep of every class its largest 26-connected component; the rest becomes background.

    Of components of one size the one whose first voxel comes first is kept. Right for organs that
    are one piece, wrong for lesions.
    """
    kept = np.zeros_like(labels_shw)
    for index in range(1, class_count):
        mask = labels_shw == index
        if not mask.any():
            continue
        components = cc3d.connected_components(mask, connectivity=26)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        kept[components == int(sizes.argmax())] = index
    return kept
