"""Coarse masks: what a trained student makes of a whole volume, on the case's own grid.

Axis letters: k classes, s slices, h rows, w columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.model import TrainedModel
from sssflow.networks.base import SegmentationNet
from sssflow.networks.predict import predict_probabilities
from sssflow.volume.intensity import normalise


def coarse_labels(
    model: SegmentationNet,
    description: TrainedModel,
    image_shw: NDArray[np.generic],
    *,
    batch_slices: int = 8,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Arg-max labels and their softmax probability, both (s,h,w) on the grid of `image_shw`.

    Args:
        model: In evaluation mode; its device is used.
        description: What the model was trained with; its intensity rule sees the whole volume.
        image_shw: Raw intensities of any real dtype.
        batch_slices: Slices per forward pass; with a 2-D model the probabilities of no more are
            held at a time. A 3-D model needs the whole volume at once.

    Returns:
        Labels (uint8, 0 background; the lower class where two are equally likely) and confidence
        (float32, 1/k to 1).
    """
    volume_shw = normalise(image_shw, description.preprocessing.intensity)
    labels_shw = np.empty(volume_shw.shape, np.uint8)
    confidence_shw = np.empty(volume_shw.shape, np.float32)
    whole = description.preprocessing.patch is not None
    held = volume_shw.shape[0] if whole else batch_slices
    for start in range(0, volume_shw.shape[0], held):
        part = slice(start, start + held)
        probability_kshw = predict_probabilities(
            model, volume_shw[part], description.preprocessing, batch_slices=batch_slices
        )
        labels_shw[part] = probability_kshw.argmax(axis=0)
        confidence_shw[part] = probability_kshw.max(axis=0)
    return labels_shw, confidence_shw
