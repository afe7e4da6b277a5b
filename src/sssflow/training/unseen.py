"""Classes that no labelled case shows, and that a model therefore cannot have learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sssflow.training.data import Slices, Stream
from sssflow.training.patches import Volumes


def unseen_warnings(labelled: Stream, class_names: Sequence[str]) -> tuple[str, ...]:
    """What every reader of a model must be told where labels lack a class; mostly nothing.

    A class whose few voxels are lost at the network's size is lacking too.

    Args:
        labelled: Slices or volumes with their labels, as the training reads them.
        class_names: The background first.
    """
    voxels = torch.zeros(len(class_names), dtype=torch.int64)
    for label in _labels(labelled):
        voxels += torch.bincount(label.flatten(), minlength=len(class_names)).cpu()
    names = zip(class_names[1:], voxels[1:].tolist(), strict=True)
    missing = [name for name, count in names if not count]
    if not missing:
        return ()
    return (
        f"No labelled case shows {', '.join(missing)} at the size that the network sees: the model "
        "cannot have learned it.",
    )


def _labels(labelled: Stream) -> list[Tensor]:
    found: list[Tensor | None] = []
    if isinstance(labelled, Slices):
        found = [labelled.label_nhw]
    elif isinstance(labelled, Volumes):
        found = [volume.label_shw for volume in labelled.volumes]
    return [label for label in found if label is not None]
