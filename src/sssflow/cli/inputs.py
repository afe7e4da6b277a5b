"""Cheap looks into a verb's inputs: their kinds, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from sssflow.contracts.base import Contract
from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.evaluation import EvaluationSummary
from sssflow.contracts.masks import MaskSet, require_same_dataset
from sssflow.contracts.model import TrainedModel
from sssflow.contracts.prompts import PromptSet
from sssflow.contracts.run import RunRecord
from sssflow.contracts.weights import PromptableWeights
from sssflow.errors import DataError, UsageError
from sssflow.sam.config import SamConfig, SamSize
from sssflow.storage.contracts import load_contract
from sssflow.training.config import TrainConfig

_PLACES: dict[type[Contract], tuple[str, ...]] = {
    DatasetManifest: ("manifest.json",),
    EvaluationSummary: ("evaluation.json",),
    MaskSet: ("masks.json",),
    PromptSet: ("prompts.json",),
    PromptableWeights: ("sam2.json",),
    RunRecord: ("run.json",),
    TrainedModel: ("model/model.json", "model.json"),
}
"""Where the stage that writes a file leaves it, below its output folder."""

K = TypeVar("K", bound=Contract)


def read_input(kind: type[K], path: Path) -> K:
    """Read a contract that a user named.

    Raises:
        DataError: It is a folder, cannot be read, or is of another kind; the file that is meant
            is named where the folder holds it.
    """
    if not path.is_dir():
        return load_contract(kind, path)
    if kind is TrainedModel and (path / "model.json").is_file():
        return load_contract(kind, path / "model.json")  # the stages take this folder too
    places = _PLACES[kind]
    meant = next((path / place for place in places if (path / place).is_file()), None)
    raise DataError(
        "This is a folder, and a file is needed.",
        where=path,
        expected=meant or f"the path of a {Path(places[0]).name}",
        found="a folder",
        action=f"Name {meant}." if meant else "Name the file that the stage before wrote.",
    )


def check_training(
    config: TrainConfig,
    section: str,
    datasets: Iterable[Path],
    masks: Sequence[Path],
    start: Path | None,
    sam2: Path | None,
) -> None:
    """Look into what `sssflow train` reads; the first of `datasets` is the one to train on.

    Raises:
        UsageError: The method learns from masks and none are given.
        DataError: A file is not what it must be, or the masks belong to another dataset.
    """
    digest, *_ = [read_input(DatasetManifest, path).digest for path in datasets]
    if config.reads_masks and config.sss.mask_weight > 0 and not masks:
        raise UsageError(
            f"The method {config.method} learns from SAM-2 masks, and none were given.",
            where=f"{section}.method",
            expected="--masks MASKS/masks.json, which `sssflow infer` writes",
            action=f"Run `sssflow prompts` and `sssflow infer` first, or set "
            f"{section}.sss.mask_weight=0; a warm-up is `sssflow train --section warmup`.",
        )
    found = [read_input(MaskSet, path).dataset_digest for path in masks]
    require_same_dataset(found, digest, what="masks")
    if start is not None:
        read_input(TrainedModel, start)
    if sam2 is not None:
        read_input(PromptableWeights, sam2)


def check_prompting(dataset: Path, model: Path, case_ids: Sequence[str]) -> None:
    """Look into what `sssflow prompts` reads.

    Raises:
        DataError: A file is not what it must be, or a case is unknown.
    """
    read_input(DatasetManifest, dataset).select(case_ids)
    read_input(TrainedModel, model)


def check_inference(dataset: Path, prompts: Path, sam2: Path | None) -> None:
    """Look into what `sssflow infer` reads, besides weights.

    Raises:
        DataError: A file is not what it must be, or the prompts belong to another dataset.
    """
    digest = read_input(DatasetManifest, dataset).digest
    require_same_dataset([read_input(PromptSet, prompts).dataset_digest], digest, what="prompts")
    if sam2 is not None:
        read_input(PromptableWeights, sam2)


def check_graphs(sam: SamConfig) -> None:
    """Read the description of the bundle whose graphs the backends onnx and triton run.

    Raises:
        DataError: It cannot be read.
        UsageError: None is named, or it is of another model, size or weights.
    """
    from sssflow.sam.onnx_backend import read_bundle

    read_bundle(sam)


def check_weights(size: SamSize, given: str | None, where: str) -> None:
    """Refuse SAM-2 weights that are missing; the file itself is read when it runs.

    Raises:
        DataError: The file does not exist.
        UsageError: An official size without a file.
    """
    from sssflow.sam.weights_io import weights_path

    path = weights_path(size, given, where=where)
    if not path.is_file():
        raise DataError(
            "The weights of SAM-2 do not exist.",
            where=path,
            expected="a .pt or .safetensors file",
            action=f"Correct {where}.",
        )
