"""Files that settings name count by what they hold, not by where they lie.

Weights, exported graphs and lists of roles.

A file that is replaced in place is other work; the same file elsewhere is the same work. Settings
that name no file are left as they are, and so are their digests.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from sssflow.contracts.base import Sha256
from sssflow.contracts.sam2_graphs import SAM2_BUNDLE_FILE
from sssflow.experiment import TRAINING_SECTIONS, ExperimentConfig
from sssflow.ingest.config import IngestConfig
from sssflow.sam.config import GeneralistConfig, SamConfig
from sssflow.storage.digest import sha256_file
from sssflow.training.config import TrainConfig

_Named = TypeVar("_Named", SamConfig, GeneralistConfig)
_NO_FILES = ("packaged", "random")


def experiment_by_content(settings: ExperimentConfig) -> ExperimentConfig:
    """The settings with the SHA-256 of every file that they name in the place of its path."""
    trainings = {name: training_by_content(settings.training(name)) for name in TRAINING_SECTIONS}
    sam, generalist = sam_by_content(settings.sam), model_by_content(settings.generalist)
    ingest = ingest_by_content(settings.ingest)
    named = {"ingest": ingest, "sam": sam, "generalist": generalist}
    return settings.model_copy(update={**named, **trainings})


def ingest_by_content(config: IngestConfig) -> IngestConfig:
    """The same for the section ingest, whose roles may be given in a file."""
    content = None if config.split.file is None else content_of(str(config.split.file))
    if content is None:
        return config
    split = config.split.model_copy(update={"file": Path(content)})
    return config.model_copy(update={"split": split})


def sam_by_content(config: SamConfig) -> SamConfig:
    """The same for the section sam; exported graphs count by their bundle, in S3 by its address."""
    bundle = config.onnx.bundle
    content = None if bundle is None else content_of(str(Path(bundle) / SAM2_BUNDLE_FILE))
    if content is not None:
        onnx = config.onnx.model_copy(update={"bundle": content})
        config = config.model_copy(update={"onnx": onnx})
    return model_by_content(config)


def model_by_content(config: _Named) -> _Named:
    """The same for the weights of a promptable model."""
    content = content_of(config.weights)
    return config if content is None else config.model_copy(update={"weights": content})


def training_by_content(config: TrainConfig) -> TrainConfig:
    """The same for a training, whose student may start from a file."""
    content = content_of(config.network.sam2.weights)
    if content is None:
        return config
    sam2 = config.network.sam2.model_copy(update={"weights": content})
    return config.model_copy(update={"network": config.network.model_copy(update={"sam2": sam2})})


def content_of(named: str | None) -> Sha256 | None:
    """SHA-256 of the file that a setting names; None where it names none, or none that is there."""
    if named is None or named in _NO_FILES or not Path(named).is_file():
        return None
    facts = Path(named).stat()
    return _hashed(os.path.realpath(named), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _hashed(path: str, size_bytes: int, changed_ns: int) -> Sha256:
    """Read once as long as size and time of change stay: a table asks for it at every run."""
    return sha256_file(Path(path))
