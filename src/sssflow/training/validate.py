"""Fast Dice on the validation volumes, for choosing weights; reports use `evaluation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.model import Preprocessing
from sssflow.networks.base import SegmentationNet
from sssflow.networks.memory import volume_fits
from sssflow.networks.predict import predict_labels
from sssflow.training.data import ValidationCase


def dice_by_class(
    prediction: NDArray[np.uint8], truth: NDArray[np.uint8], class_count: int
) -> NDArray[np.float64]:
    """Dice of classes 1.. of one volume; NaN where a class is in neither, 0 where in one only."""
    pairs = prediction.ravel().astype(np.int64) * class_count + truth.ravel()
    table = np.bincount(pairs, minlength=class_count**2).reshape(class_count, class_count)
    size = table.sum(0) + table.sum(1)
    with np.errstate(invalid="ignore"):
        dice: NDArray[np.float64] = 2.0 * np.diag(table) / size
    return dice[1:]


def validate(
    net: SegmentationNet,
    cases: Sequence[ValidationCase],
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Mean Dice per class over cases that have it, and `dice`, the mean over classes.

    Dice is taken on the case grid. Leaves `net` in the mode it was in. Keys `dice` and
    `dice_<class name>`; a class that no case has is left out. Empty where no truth shows any class:
    there is nothing to choose by. None where `is_stopped`, asked before every volume, said so.

    Raises:
        DataError: A volume does not fit into memory.
    """
    if not any(case.label_shw.any() for case in cases):
        return {}
    was_training = net.training
    net.eval()
    rows: list[NDArray[np.float64]] = []
    for case in cases:
        if is_stopped():
            break
        rows.append(_scores(net, case, preprocessing, len(class_names)))
    net.train(was_training)
    if len(rows) < len(cases):
        return None
    table = np.stack(rows)
    means = {
        f"dice_{name}": float(np.nanmean(column))
        for name, column in zip(class_names[1:], table.T, strict=True)
        if not np.isnan(column).all()
    }
    return {"dice": float(np.mean(list(means.values()))), **means}


def _scores(
    net: SegmentationNet, case: ValidationCase, preprocessing: Preprocessing, class_count: int
) -> NDArray[np.float64]:
    with volume_fits(case.case_id):
        found = predict_labels(net, case.volume_shw, preprocessing)
    return dice_by_class(found, case.label_shw, class_count)
