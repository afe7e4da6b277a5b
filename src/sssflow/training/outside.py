"""What a run of `semisam` gets from outside its dataset: the generalist, and leaked labels."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sssflow.contracts.base import Sha256
from sssflow.contracts.dataset import DatasetManifest
from sssflow.errors import UsageError
from sssflow.sam.promptable import Generalist
from sssflow.storage.contracts import load_contract
from sssflow.training.config import TrainConfig
from sssflow.training.data import TrainingData
from sssflow.training.load import load_streams
from sssflow.training.oracle import WARNING, LeakedStream, leaked_manifest

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outside:
    """A generalist, and the manifest (with its folder) of an oracle run."""

    generalist: Generalist | None = None
    oracle: DatasetManifest | None = None
    oracle_base: Path = Path()

    @property
    def inputs(self) -> dict[str, Sha256]:
        """Name to digest, for the record and for what a checkpoint must agree with."""
        named = {}
        if self.generalist is not None:
            named["generalist"] = self.generalist.digest
        if self.oracle is not None:
            named["leaked_labels"] = self.oracle.digest
        return named

    def leak_into(
        self,
        data: TrainingData,
        config: TrainConfig,
        manifest: DatasetManifest,
        device: torch.device,
    ) -> TrainingData:
        """The data, its unlabelled stream with labels in an oracle run; else untouched.

        Raises:
            DataError: The oracle's dataset does not hold these cases with labels.
        """
        if self.oracle is None:
            return data
        # Drawing by class would let the leaked labels choose the slices too; v1 does not.
        streams = load_streams(
            config.model_copy(update={"foreground_probability": 0.0}),
            leaked_manifest(manifest, self.oracle),
            self.oracle_base,
            device=device,
            needs_unlabelled=False,
        )
        return replace(data, unlabelled=LeakedStream(streams.labelled))


def outside_of(
    config: TrainConfig, generalist: Generalist | None, leak_labels_from: Path | None
) -> Outside:
    """What the run gets, after a look at whether it fits the method.

    Labels leak only if both the preset and the dataset that holds them are named.

    Raises:
        UsageError: semisam without a generalist, or one of the two keys of an oracle run alone.
    """
    used = config.method == "semisam"
    wants_oracle = used and config.semisam.preset == "oracle_prompts"
    if used and generalist is None:
        raise UsageError(
            "The method semisam asks a generalist, and none was given.",
            where="generalist",
            expected="SAM-2 or SAM-Med3D, built from the section `generalist`",
            action="Train by `sssflow train` or by the component, which build it.",
        )
    if wants_oracle != (leak_labels_from is not None):
        raise UsageError(
            "Labels of unlabelled cases leak only where preset and dataset both say so.",
            where="semisam.preset",
            expected="semisam.preset=oracle_prompts together with --leak-labels-from MANIFEST",
            found=f"{config.semisam.preset}, "
            f"{'no dataset' if leak_labels_from is None else leak_labels_from}",
            action="Leave both out, unless you want the leaking bound of SemiSAM v1's code.",
        )
    if not used:
        return Outside()
    if leak_labels_from is None:
        return Outside(generalist)
    _LOG.warning(WARNING)
    oracle = load_contract(DatasetManifest, leak_labels_from)
    return Outside(generalist, oracle, leak_labels_from.parent)


def generalist_note(generalist: Generalist | None) -> tuple[str, ...]:
    """A line for the record of a run that asked a generalist."""
    return (
        () if generalist is None else (f"Frozen generalist beside the labels: {generalist.name}.",)
    )
