"""Classes that no labelled case shows, and that a model therefore cannot have learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sssflow.contracts.dataset import DatasetManifest
from sssflow.training.data import labelled_cases, read_label


def unseen_warnings(manifest: DatasetManifest, base: Path) -> tuple[str, ...]:
    """What every reader of a model must be told where labels lack a class; mostly nothing.

    Args:
        manifest: The dataset that the training reads.
        base: Its folder.

    Raises:
        DataError: A label is missing, changed, or holds a value that is no class.
    """
    voxels = np.zeros(manifest.class_count, np.int64)
    for case in labelled_cases(manifest):
        label = read_label(case, base, manifest.class_count)
        voxels += np.bincount(label.ravel(), minlength=manifest.class_count)
    names = zip(manifest.class_names[1:], voxels[1:], strict=True)
    missing = [name for name, count in names if not count]
    if not missing:
        return ()
    return (f"No labelled case shows {', '.join(missing)}: the model cannot have learned it.",)
