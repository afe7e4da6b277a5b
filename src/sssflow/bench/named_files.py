"""Files of weights that settings name count by what they hold, not by where they lie.

A file that is replaced in place is other work; the same file elsewhere is the same work. Settings
that name no file are left as they are, and so are their digests.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from sssflow.contracts.base import Sha256
from sssflow.experiment import TRAINING_SECTIONS, ExperimentConfig
from sssflow.sam.config import GeneralistConfig, SamConfig
from sssflow.storage.digest import sha256_file
from sssflow.training.config import TrainConfig

_Named = TypeVar("_Named", SamConfig, GeneralistConfig)
_NO_FILES = ("packaged", "random")


def experiment_by_content(settings: ExperimentConfig) -> ExperimentConfig:
    """The settings with the SHA-256 of every file of weights in the place of its path."""
    trainings = {name: training_by_content(settings.training(name)) for name in TRAINING_SECTIONS}
    sam, generalist = model_by_content(settings.sam), model_by_content(settings.generalist)
    return settings.model_copy(update={"sam": sam, "generalist": generalist, **trainings})


def model_by_content(config: _Named) -> _Named:
    """The same for the section of a promptable model."""
    content = content_of(config.weights)
    return config if content is None else config.model_copy(update={"weights": content})


def training_by_content(config: TrainConfig) -> TrainConfig:
    """The same for a training, whose student may start from a file."""
    content = content_of(config.network.sam2.weights)
    if content is None:
        return config
    sam2 = config.network.sam2.model_copy(update={"weights": content})
    return config.model_copy(update={"network": config.network.model_copy(update={"sam2": sam2})})


def content_of(weights: str | None) -> Sha256 | None:
    """SHA-256 of the file that a setting names; None where it names none, or none that is there."""
    if weights is None or weights in _NO_FILES or not Path(weights).is_file():
        return None
    facts = Path(weights).stat()
    return _hashed(os.path.realpath(weights), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _hashed(path: str, size_bytes: int, changed_ns: int) -> Sha256:
    """Read once as long as size and time of change stay: a table asks for it at every run."""
    return sha256_file(Path(path))
