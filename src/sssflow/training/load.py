"""The streams of a run: slices for a 2-D student, whole volumes for a 3-D one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.masks import CaseMasks
from sssflow.training.config import TrainConfig
from sssflow.training.data import (
    Stream,
    TrainingData,
    load_labelled,
    load_unlabelled,
)
from sssflow.training.distributed import ALONE, World
from sssflow.training.patches import load_labelled_volumes, load_unlabelled_volumes
from sssflow.training.validate import load_validation


def load_streams(
    config: TrainConfig,
    manifest: DatasetManifest,
    base: Path,
    *,
    device: torch.device,
    needs_unlabelled: bool,
    masks: Mapping[str, tuple[CaseMasks, Path]] | None = None,
    world: World = ALONE,
) -> TrainingData:
    """Read everything that the run learns from onto `device`; validation stays on the CPU.

    Every process of `world` reads all streams, and its share of the validation cases.

    `masks` (case id to masks and their folder) are for 2-D students only.

    Raises:
        DataError: A role is missing, or a file has changed.
        UsageError: A stream does not fit into `config.memory_gib`.
    """
    size, limit = config.preprocessing, config.memory_gib
    unlabelled: Stream | None = None
    labelled: Stream
    if size.patch is None:
        labelled = load_labelled(
            manifest,
            base,
            size,
            memory_gib=limit,
            foreground_probability=config.foreground_probability,
        ).to(device)
        if needs_unlabelled:
            unlabelled = load_unlabelled(
                manifest, base, size, memory_gib=limit, masks=masks, trust=config.sss
            ).to(device)
    else:
        labelled = load_labelled_volumes(
            manifest,
            base,
            size,
            size.patch,
            memory_gib=limit,
            foreground_probability=config.foreground_probability,
        ).to(device)
        if needs_unlabelled:
            unlabelled = load_unlabelled_volumes(
                manifest, base, size, size.patch, memory_gib=limit
            ).to(device)
    validation = load_validation(manifest, base, size, memory_gib=limit, world=world)
    return TrainingData(labelled, unlabelled, validation)
