"""A tiny packed dataset with two saved models, drawn here, for the tests of the stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sssflow.contracts.dataset import DatasetManifest, Grid, LabelledCase, Modality, Role
from sssflow.contracts.model import Preprocessing, SeenImages
from sssflow.networks.config import NetworkConfig
from sssflow.networks.registry import build_network
from sssflow.networks.trained import Provenance, save_model
from sssflow.storage.contracts import save_contract
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

    def digest_of(self, case_id: str) -> str:
        """SHA-256 of the packed image of a case."""
        (case,) = self.manifest.select([case_id])
        return case.image.sha256

    def model_that_saw(self, folder: Path, seen: SeenImages) -> Path:
        """A model.json whose description says what it saw."""
        net = build_network(NET, len(CLASS_NAMES), seed=1)
        about = Provenance(CLASS_NAMES, self.manifest.digest, "supervised", 5, seen=seen)
        save_model(folder, net.state_dict(), NET, PREPROCESSING, about)
        return folder / "model.json"


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
