"""A packed dataset and a small student, made without ingest and training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sssflow.contracts.dataset import (
    DatasetManifest,
    Grid,
    LabelledCase,
    Modality,
    Role,
    UnlabelledCase,
)
from sssflow.contracts.model import IntensityRule, Preprocessing
from sssflow.networks.config import NetworkConfig
from sssflow.networks.registry import build_network
from sssflow.networks.trained import Provenance, save_model
from sssflow.storage.contracts import save_contract
from sssflow.volume.packed import write_packed

SHAPE_SHW = (10, 20, 24)
NETWORK = NetworkConfig(base_channels=4, levels=3)
AFFINE = ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0))


@dataclass(frozen=True)
class Ready:
    """Paths of a dataset's manifest and of a model trained on it, so to speak."""

    dataset: Path
    model: Path


def grid(spacing_shw_mm: tuple[float, float, float], *, known: bool = True) -> Grid:
    return Grid(
        shape_shw=SHAPE_SHW, spacing_shw_mm=spacing_shw_mm, affine_ras=AFFINE, spacing_known=known
    )


def write_dataset(folder: Path, *, spacing_known: bool = True) -> DatasetManifest:
    rng = np.random.default_rng(7)
    cases: list[LabelledCase | UnlabelledCase] = []
    plan = {"a": Role.LABELLED, "b": Role.UNLABELLED, "c": Role.UNLABELLED, "d": Role.VALIDATION}
    for number, (name, role) in enumerate(plan.items()):
        image = write_packed(
            folder / "images" / f"{name}.b2nd",
            rng.normal(size=SHAPE_SHW).astype(np.float32),
            base=folder,
        )
        facts = {
            "case_id": name,
            "patient_id": name,
            "image": image,
            "grid": grid((8.0 + number, 1.0, 2.0 * (number + 1)), known=spacing_known),
            "modality": Modality.MR,
        }
        if role == Role.UNLABELLED:
            cases.append(UnlabelledCase(**facts))
            continue
        label = write_packed(
            folder / "labels" / f"{name}.b2nd", np.zeros(SHAPE_SHW, np.uint8), base=folder
        )
        cases.append(LabelledCase(role=role, label=label, **facts))
    manifest = DatasetManifest(
        name="made-by-hand",
        source_layout="none",
        class_names=("background", "ring", "disc"),
        source_digest="0" * 64,
        split_rule="by hand",
        cases=tuple(cases),
    )
    save_contract(manifest, folder / "manifest.json")
    return manifest


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    root = tmp_path_factory.mktemp("export")
    manifest = write_dataset(root / "data")
    save_model(
        root / "model",
        build_network(NETWORK, manifest.class_count, seed=3).state_dict(),
        NETWORK,
        Preprocessing(size_hw=(16, 24), intensity=IntensityRule(kind="percentile")),
        Provenance(manifest.class_names, manifest.digest, "supervised", 5),
    )
    return Ready(root / "data" / "manifest.json", root / "model" / "model.json")
