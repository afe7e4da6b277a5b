"""A tiny packed dataset with two saved models, prompts and SAM-2 masks, all made here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sssflow.contracts.dataset import DatasetManifest, Grid, LabelledCase, Modality, Role
from sssflow.contracts.masks import CaseMasks, MaskSet
from sssflow.contracts.model import Preprocessing
from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, PromptSet, SlicePrompt
from sssflow.contracts.run import RunRecord
from sssflow.networks.config import NetworkConfig
from sssflow.networks.registry import build_network
from sssflow.networks.trained import Provenance, save_model
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import reference
from sssflow.volume.packed import write_packed

CLASS_NAMES = ("background", "RV", "MYO")
SHAPE = (4, 20, 24)
SPACING = (8.0, 1.5, 1.25)
DIGEST = "0" * 64
NET = NetworkConfig(base_channels=4, levels=3)
PREPROCESSING = Preprocessing(size_hw=(16, 16))


@dataclass(frozen=True)
class Place:
    """Where the tiny inputs of a stage test lie."""

    root: Path
    manifest_path: Path
    manifest: DatasetManifest

    @property
    def models(self) -> dict[str, Path]:
        return {n: self.root / n / "model.json" for n in ("supervised", "sss")}

    def truth_of(self, index: int, phase: int) -> np.ndarray:
        return draw_truth(index, phase)


def draw_truth(index: int, phase: int) -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    size = 5 - phase
    labels[1:3, 4 : 4 + size, 3 + index : 3 + index + size] = 1
    labels[1:3, 11 : 11 + size, 10:15] = 2
    return labels


def _add_case(
    root: Path, patient: int, phase: int, role: Role, *, spacing_known: bool
) -> LabelledCase:
    generator = np.random.default_rng(10 * patient + phase)
    truth = draw_truth(patient, phase)
    image = (truth * 80.0 + generator.normal(20, 5, SHAPE)).astype(np.float32)
    name = f"patient{patient}_{'ED' if phase == 0 else 'ES'}"
    spacing = SPACING if spacing_known else (1.0, 1.0, 1.0)
    affine = np.diag([spacing[2], spacing[1], spacing[0], 1.0]).tolist()
    return LabelledCase(
        case_id=name,
        patient_id=f"patient{patient}",
        image=write_packed(root / "images" / f"{name}.b2nd", image, base=root),
        label=write_packed(root / "labels" / f"{name}.b2nd", truth, base=root),
        grid=Grid(
            shape_shw=SHAPE, spacing_shw_mm=spacing, affine_ras=affine, spacing_known=spacing_known
        ),
        modality=Modality.MR,
        phase="ED" if phase == 0 else "ES",
        role=role,
    )


def make_place(root: Path, *, spacing_known: bool = True, name: str = "tiny") -> Place:
    roles = [Role.LABELLED, Role.VALIDATION, Role.TEST, Role.TEST, Role.TEST]
    cases = [
        _add_case(root, patient, phase, role, spacing_known=spacing_known)
        for patient, role in enumerate(roles)
        for phase in (0, 1)
    ]
    manifest = DatasetManifest(
        name=name,
        source_layout="acdc",
        class_names=CLASS_NAMES,
        source_digest=DIGEST,
        split_rule="by hand, for a test",
        cases=tuple(cases),
    )
    save_contract(manifest, root / "manifest.json")
    for seed, model in enumerate(("supervised", "sss")):
        net = build_network(NET, len(CLASS_NAMES), seed=seed)
        about = Provenance(CLASS_NAMES, manifest.digest, model, 10 + seed)
        save_model(root / model, net.state_dict(), NET, PREPROCESSING, about)
    return Place(root, root / "manifest.json", manifest)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Three test patients, one validation patient, two models; nobody may write into it."""
    return make_place(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_prompted(place: Place, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write prompts.json and masks.json for cases: SAM-2 is the truth, coarse misses a slice."""

    def make(*case_ids: str, coarse: bool = True) -> tuple[Path, Path]:
        cases, masks = [], []
        for case in place.manifest.select(case_ids):
            patient, phase = int(case.patient_id[-1]), int(case.phase == "ES")
            truth = draw_truth(patient, phase)
            rough = truth.copy()
            rough[2] = 0
            ref = write_packed(tmp_path / f"coarse_{case.case_id}.b2nd", rough, base=tmp_path)
            slices = SlicePrompt(
                slice_index=1,
                box_xyxy_px=(3.0, 4.0, 8.0, 9.0),
                points_xy_px=((5.0, 6.0), (0.0, 0.0)),
                point_labels=(1, 0),
            )
            found = ObjectPrompts(
                class_index=1,
                continuity=1.0,
                window_start=1,
                window_length=2,
                accepted=True,
                component_voxels=50,
                slices=(slices,),
            )
            cases.append(
                CasePrompts(
                    case_id=case.case_id,
                    shape_shw=SHAPE,
                    objects=(found,),
                    coarse=ref if coarse else None,
                )
            )
            soft = np.stack([(truth == k) * np.uint8(200) for k in (1, 2)])
            masks.append(
                CaseMasks(
                    case_id=case.case_id,
                    probability_kshw=write_packed(
                        tmp_path / f"masks_{case.case_id}.b2nd", soft, base=tmp_path
                    ),
                )
            )
        prompts = PromptSet(
            dataset_digest=place.manifest.digest,
            model_digest="1" * 64,
            method="pcsw",
            config_digest=DIGEST,
            class_names=CLASS_NAMES,
            cases=tuple(cases),
        )
        mask_set = MaskSet(
            dataset_digest=place.manifest.digest,
            prompt_digest=prompts.digest,
            model_digest="2" * 64,
            backend="torch",
            config_digest=DIGEST,
            class_names=CLASS_NAMES,
            cases=tuple(masks),
        )
        return (
            save_contract(prompts, tmp_path / "prompts.json"),
            save_contract(mask_set, tmp_path / "masks.json"),
        )

    return make


@pytest.fixture(scope="session")
def run_files(place: Place) -> dict[str, Path]:
    """run.json of both models, with a history."""
    written = {}
    for name, model in place.models.items():
        record = RunRecord(
            method=name,
            config={},
            config_digest=DIGEST,
            seed=3,
            versions={},
            inputs={"dataset": place.manifest.digest},
            steps=20,
            best_step=10,
            selection="mean Dice of the validation cases",
            metrics={"dice": 0.5},
            history=({"step": 10.0, "dice": 0.5}, {"step": 20.0, "dice": 0.4}),
            model=reference(model),
            wall_time_s=75.0,
            device="cpu",
        )
        written[name] = save_contract(record, place.root / f"run_{name}.json")
    return written
