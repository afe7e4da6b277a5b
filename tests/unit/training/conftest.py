"""A dataset small enough to train on in a second: a disc (class 1) inside a ring (class 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from semisam_cases import LOOSE, by_grey

from disc_scans import CLASS_NAMES, GRID, draw
from sssflow.contracts.dataset import (
    DatasetManifest,
    LabelledCase,
    Modality,
    Role,
    UnlabelledCase,
)
from sssflow.contracts.masks import CaseMasks, MaskSet, ObjectScores
from sssflow.sam.config import GeneralistConfig
from sssflow.sam.generalist import load_generalist
from sssflow.sam.promptable import Generalist
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.training import stage
from sssflow.training.config import TrainConfig
from sssflow.training.methods.registry import METHODS
from sssflow.training.outside import outside_of
from sssflow.training.standing import Run
from sssflow.volume.packed import write_packed

ROLES = (
    ("a1", Role.LABELLED),
    ("a2", Role.LABELLED),
    ("b1", Role.UNLABELLED),
    ("b2", Role.UNLABELLED),
    ("b3", Role.UNLABELLED),
    ("c1", Role.VALIDATION),
)


IN_LOOP = {
    "network": {"name": "sam2", "sam2": {"weights": "random", "coarse_width": 8}},
    "steps": 2,
    "eval_every": 2,
    "sss_in_loop": {
        "clip_slices": 3,
        "dfe_width": 8,
        "confidence_threshold": 0.0,
        "memory_draws": 1,
        "unlabelled_weight": 1.0,
        "ramp_share": 0.0,
    },
}
"""The in-loop method trains nano SAM-2, which is not tiny: fewer steps, clips of whole cases."""


@dataclass(frozen=True)
class TinyDataset:
    """Where the files are, and the truth of every case."""

    dataset: Path
    masks: Path
    truth: dict[str, NDArray[np.uint8]]


def make_dataset(folder: Path) -> TinyDataset:
    """Six cases, two of them labelled, one for validation, and SAM-2-like masks of the rest."""
    cases, masks, truth = [], [], {}
    for number, (case_id, role) in enumerate(ROLES):
        image, label = draw(number)
        truth[case_id] = label
        ref = write_packed(folder / "images" / f"{case_id}.b2nd", image, base=folder)
        common = {
            "case_id": case_id,
            "patient_id": f"p{case_id}",
            "image": ref,
            "grid": GRID,
            "modality": Modality.MR,
        }
        if role is Role.UNLABELLED:
            cases.append(UnlabelledCase(**common))
            soft = np.stack([(label == k) * np.uint8(230) for k in (1, 2)]).astype(np.uint8)
            packed = write_packed(folder / "masks" / f"{case_id}.b2nd", soft, base=folder)
            scores = tuple(
                ObjectScores(
                    class_index=k,
                    predicted_iou=(0.9, 0.8, None),
                    object_score=(5.0, 4.0, None),
                    prompted=(True, False, False),
                )
                for k in (1, 2)
            )
            masks.append(CaseMasks(case_id=case_id, probability_kshw=packed, objects=scores))
        else:
            label_ref = write_packed(folder / "labels" / f"{case_id}.b2nd", label, base=folder)
            cases.append(LabelledCase(**common, role=role, label=label_ref))
    manifest = DatasetManifest(
        name="tiny",
        source_layout="drawn",
        class_names=CLASS_NAMES,
        source_digest="0" * 64,
        split_rule="fixed",
        cases=tuple(cases),
    )
    dataset = save_contract(manifest, folder / "manifest.json")
    mask_set = MaskSet(
        dataset_digest=manifest.digest,
        prompt_digest="1" * 64,
        model_digest="2" * 64,
        backend="torch",
        config_digest="3" * 64,
        class_names=manifest.class_names,
        cases=tuple(masks),
    )
    return TinyDataset(dataset, save_contract(mask_set, folder / "masks.json"), truth)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    """One dataset for the session; nobody writes into it."""
    return make_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def nano() -> Generalist:
    """Nano SAM-2 as a frozen generalist; nobody may train it."""
    return load_generalist(GeneralistConfig(input_size=64))


@pytest.fixture
def seeing_specialist(monkeypatch: pytest.MonkeyPatch) -> None:
    """SemiSAM's specialist sees what is there; an untrained one may see background alone."""
    monkeypatch.setattr(
        "sssflow.training.methods.semisam.monte_carlo",
        lambda net, image, **_: by_grey(net, image).softmax(1),
    )


@pytest.fixture
def fresh_tiny(tmp_path: Path) -> TinyDataset:
    """A dataset of one's own, to break."""
    return make_dataset(tmp_path / "data")


@pytest.fixture
def prepared(tiny: TinyDataset, request: pytest.FixtureRequest) -> Callable[[TrainConfig], Run]:
    """A run on the tiny dataset before its first step, with masks, and a generalist if needed."""

    def prepare(config: TrainConfig) -> Run:
        manifest = load_contract(DatasetManifest, tiny.dataset)
        masks = [(load_contract(MaskSet, tiny.masks), tiny.masks.parent)]
        asks = METHODS[config.method].needs_generalist
        outside = outside_of(config, request.getfixturevalue("nano") if asks else None, None)
        folder = tiny.dataset.parent
        run = stage.prepare(config, manifest, folder, folder, masks, outside=outside)
        run.method.train_mode()
        return run

    return prepare


@pytest.fixture
def tiny_config() -> Callable[..., TrainConfig]:
    """A configuration that trains in a second; keyword arguments replace top-level keys."""

    def make(**changes: object) -> TrainConfig:
        data: dict[str, object] = {
            "network": {"base_channels": 4, "levels": 3},
            "preprocessing": {"size_hw": [32, 32]},
            "steps": 6,
            "batch_labelled": 2,
            "batch_unlabelled": 2,
            "eval_every": 3,
            "device": "cpu",
            "threads": 1,
            "precision": "float32",
            "sss": {"dfe_width": 8, "dfe_levels": [-1, -2]},
            "unimatch_v2": {"confidence_threshold": 0.3},
            "ua_mt": {"passes": 2, "entropy_share_start": 1.0},
            "fixmatch": {"confidence_threshold": 0.3},
            "unimatch": {"confidence_threshold": 0.3},
            "bcp": {"pretrain_share": 0.2},
            "dan": {"discriminator_width": 4},
            "semisam": LOOSE,
            **(IN_LOOP if changes.get("method") == "sss_in_loop" else {}),
            **changes,
        }
        return TrainConfig.model_validate(data)

    return make
