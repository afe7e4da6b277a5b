"""The validation volumes read, and a fast Dice on them to choose weights by.

Reports use `evaluation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.contracts.model import Preprocessing
from sssflow.networks.base import SegmentationNet
from sssflow.networks.memory import volume_fits
from sssflow.networks.predict import predict_labels
from sssflow.training.data import ValidationCase, read_image, read_label
from sssflow.training.distributed import ALONE, World
from sssflow.training.memory import require_memory

_BYTES_PER_VALIDATION_VOXEL = 5
"""float32 image and uint8 label."""


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


def load_validation(
    manifest: DatasetManifest,
    base: Path,
    preprocessing: Preprocessing,
    *,
    memory_gib: float,
    world: World = ALONE,
) -> tuple[ValidationCase, ...]:
    """This process's share of the validation volumes, on their own grids; it can be empty.

    Raises:
        DataError: A changed file, values that are not finite, or a label value without a class.
        UsageError: They do not fit into `memory_gib`.
    """
    cases = world.own(manifest.labelled(Role.VALIDATION))
    voxels = sum(math.prod(case.grid.shape_shw) for case in cases)
    require_memory(
        voxels * _BYTES_PER_VALIDATION_VOXEL,
        memory_gib,
        what=f"{len(cases)} validation volumes of {voxels} voxels in all",
        remedy="give fewer patients the role validation",
    )
    return tuple(
        ValidationCase(
            case.case_id,
            read_image(case, base, preprocessing).numpy(),
            read_label(case, base, manifest.class_count),
        )
        for case in cases
    )


def validate(
    net: SegmentationNet,
    cases: Sequence[ValidationCase],
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    *,
    world: World = ALONE,
    is_stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Mean Dice per class over cases that have it, and `dice`, the mean over classes.

    Of several processes each predicts its `cases` with equal weights; the first is told the means.
    Dice is taken on the case grid. Leaves `net` in the mode it was in. Keys `dice` and
    `dice_<class name>`; a class that no case has is left out. Empty where no truth shows any class:
    there is nothing to choose by. None where `is_stopped`, asked before every volume, said so to
    any process, and for all processes but the first.

    Raises:
        DataError: A volume does not fit into memory.
        UnavailableError: Another process ended, or gave no answer in time.
    """
    (shows_a_class,) = world.any(any(case.label_shw.any() for case in cases))
    if not shows_a_class:
        return {}
    was_training = net.training
    net.eval()
    rows: list[NDArray[np.float64]] = []
    for case in cases:
        if is_stopped():
            break
        rows.append(_scores(net, case, preprocessing, len(class_names)))
    net.train(was_training)
    (cut_short,) = world.any(len(rows) < len(cases))
    if cut_short:
        return None
    own = torch.from_numpy(np.reshape(rows, (len(rows), len(class_names) - 1)))
    parts = world.gather({"dice": own})
    if not parts:
        return None
    return _means(torch.cat([part["dice"] for part in parts]).numpy(), class_names)


def _means(table: NDArray[np.float64], class_names: Sequence[str]) -> dict[str, float]:
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
