"""Small contract files that verbs read, with nothing behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import DatasetManifest, Grid, Modality, UnlabelledCase
from sssflow.contracts.masks import MaskSet
from sssflow.contracts.model import Preprocessing, TrainedModel
from sssflow.contracts.prompts import PromptSet
from sssflow.contracts.weights import PromptableWeights
from sssflow.storage.contracts import save_contract

SHA = "ab" * 32
_REF = ObjectRef(uri="a.b2nd", size_bytes=3, sha256=SHA)
_CLASSES = ("background", "LV")


@dataclass(frozen=True)
class Files:
    """Where the files are; prompts and masks belong to the manifest."""

    manifest: Path
    model: Path
    prompts: Path
    masks: Path
    sam2: Path


def write_files(folder: Path) -> Files:
    """Write one file of each kind where its stage would."""
    grid = Grid(
        shape_shw=(2, 4, 4),
        spacing_shw_mm=(1, 1, 1),
        affine_ras=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
    )
    case = UnlabelledCase(
        case_id="p1", patient_id="p1", image=_REF, grid=grid, modality=Modality.MR
    )
    manifest = DatasetManifest(
        name="one",
        source_layout="acdc",
        class_names=_CLASSES,
        source_digest=SHA,
        split_rule="none",
        cases=(case,),
    )
    model = TrainedModel(
        network={"name": "unet"},
        preprocessing=Preprocessing(),
        class_names=_CLASSES,
        weights=_REF,
        dataset_digest=manifest.digest,
        method="supervised",
        step=1,
    )
    prompts = PromptSet(
        dataset_digest=manifest.digest,
        model_digest=model.digest,
        method="pcsw",
        config_digest=SHA,
        class_names=_CLASSES,
        cases=(),
    )
    masks = MaskSet(
        dataset_digest=manifest.digest,
        prompt_digest=prompts.digest,
        model_digest=SHA,
        backend="torch",
        config_digest=SHA,
        class_names=_CLASSES,
        cases=(),
    )
    sam2 = PromptableWeights(
        weights=_REF,
        start_sha256=SHA,
        dataset_digest=manifest.digest,
        config_digest=SHA,
        steps=1,
    )
    return Files(
        save_contract(manifest, folder / "dataset" / "manifest.json"),
        save_contract(model, folder / "w3" / "model" / "model.json"),
        save_contract(prompts, folder / "prompts" / "prompts.json"),
        save_contract(masks, folder / "masks" / "masks.json"),
        save_contract(sam2, folder / "adapted" / "sam2.json"),
    )
