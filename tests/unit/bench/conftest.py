"""A protocol that trains in a second, and a dataset of drawn discs with every label."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from disc_scans import CLASS_NAMES, GRID, draw
from sssflow.bench.config import BenchConfig
from sssflow.bench.protocol import Protocol
from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Modality, Role
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.volume.packed import write_packed

ROLES = {
    "a": Role.LABELLED,
    "b": Role.LABELLED,
    "c": Role.LABELLED,
    "d": Role.LABELLED,
    "v": Role.VALIDATION,
    "w": Role.VALIDATION,
    "x": Role.VALIDATION,
}
ORDER = ("c", "a", "d", "b")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """manifest.json of a dataset that has every label; nobody writes into it."""
    folder = tmp_path_factory.mktemp("whole")
    cases = []
    for number, (name, role) in enumerate(ROLES.items()):
        image, label = draw(number)
        cases.append(
            LabelledCase(
                case_id=name,
                patient_id=f"p{name}",
                image=write_packed(folder / "images" / f"{name}.b2nd", image, base=folder),
                label=write_packed(folder / "labels" / f"{name}.b2nd", label, base=folder),
                grid=GRID,
                modality=Modality.MR,
                role=role,
            )
        )
    manifest = DatasetManifest(
        name="discs",
        source_layout="drawn",
        class_names=CLASS_NAMES,
        source_digest="0" * 64,
        split_rule="drawn",
        label_order=tuple(f"p{name}" for name in ORDER),
        cases=tuple(cases),
    )
    return save_contract(manifest, folder / "manifest.json")


@pytest.fixture
def with_copy(whole: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """Give `whole` with the image of the first case in the second one too, another patient's."""

    def copied(first: str, second: str) -> Path:
        manifest, folder = load_contract(DatasetManifest, whole), tmp_path / "with_copy"
        shutil.copytree(whole.parent, folder)
        shutil.copyfile(folder / "images" / f"{first}.b2nd", folder / "images" / f"{second}.b2nd")
        (image,) = (case.image for case in manifest.cases if case.case_id == first)
        own = image.model_copy(update={"uri": f"images/{second}.b2nd"})
        cases = tuple(
            case.model_copy(update={"image": own}) if case.case_id == second else case
            for case in manifest.cases
        )
        changed = manifest.model_copy(update={"cases": cases})
        return save_contract(changed, folder / "manifest.json")

    return copied


@pytest.fixture
def tiny_protocol() -> Protocol:
    """Six steps on the discs."""
    return Protocol.model_validate(
        {
            "name": "tiny",
            "title": "Discs",
            "summary": "Drawn discs.",
            "labelled": [1, 2],
            "methods": {"mean_teacher": {"mean_teacher": {"consistency_weight": 0.5}}},
            "experiment": {
                "ingest": {"split": {"validation": 3}},
                "evaluate": {"bootstrap_resamples": 200, "worst_cases": 0, "median_cases": 0},
                "train": {
                    "network": {"base_channels": 4, "levels": 3},
                    "preprocessing": {"size_hw": [32, 32]},
                    "steps": 6,
                    "batch_labelled": 2,
                    "batch_unlabelled": 2,
                    "eval_every": 3,
                    "device": "cpu",
                    "precision": "float32",
                },
            },
        }
    )


@pytest.fixture
def tiny_bench() -> BenchConfig:
    """One label count, one seed, two methods."""
    return BenchConfig(labelled=(2,), methods=("mean_teacher",), seeds=(1,), poll_s=0.1, threads=1)
