"""Which classes SAM-2's masks never show: then it taught nothing about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sssflow.contracts.masks import MaskSet
from sssflow.volume.packed import read_packed

_PRESENT = 128
"""Smallest stored value of a voxel that is rather inside than outside: above 0.5 of 255."""


def silent_classes(
    mask_sets: Sequence[tuple[MaskSet, Path]], class_names: Sequence[str]
) -> tuple[str, ...]:
    """Names of the foreground classes that hold no voxel in any mask of these sets.

    Masks are read until every class was found, so that one case mostly is enough. Without any
    case nothing can be said, and nothing is.

    Args:
        mask_sets: Each with the folder that its paths are relative to.
        class_names: Index = label; the background comes first.

    Raises:
        DataError: A mask file is missing or changed.
    """
    cases = [(case, folder) for found, folder in mask_sets for case in found.cases]
    missing = set(range(1, len(class_names))) if cases else set()
    for case, folder in cases:
        prompted = missing & {item.class_index for item in case.objects}
        if not prompted:
            continue
        probability_kshw = read_packed(case.probability_kshw, base=folder).astype(np.uint8)
        missing -= {k for k in prompted if (probability_kshw[k - 1 : k] >= _PRESENT).any()}
    return tuple(class_names[k] for k in sorted(missing))


def silence_warnings(
    mask_sets: Sequence[tuple[MaskSet, Path]], class_names: Sequence[str]
) -> tuple[str, ...]:
    """What every reader of a model must be told that was trained on these masks; mostly nothing.

    Raises:
        DataError: A mask file is missing or changed.
    """
    silent = silent_classes(mask_sets, class_names)
    if not silent:
        return ()
    if len(silent) == len(class_names) - 1:
        return ("SAM-2 contributed nothing to this model: its masks are empty in every case.",)
    named = ", ".join(silent)
    return (f"SAM-2 contributed nothing on {named}: its masks hold none of it in any case.",)
