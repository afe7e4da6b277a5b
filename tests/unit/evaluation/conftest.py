"""Fixtures of the evaluation tests: dataset, models, prompts, SAM-2 masks, runs, all tiny."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluation_place import CLASS_NAMES, DIGEST, SHAPE, Place, draw_truth, make_place

from sssflow.contracts.masks import CaseMasks, MaskSet
from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, PromptSet, SlicePrompt
from sssflow.contracts.run import RunRecord
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import reference
from sssflow.volume.packed import write_packed


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
            truth = draw_truth(int(case.patient_id[-1]), int(case.phase == "ES"))
            cases.append(_prompts_of(case.case_id, truth, tmp_path, coarse=coarse))
            soft = np.stack([(truth == k) * np.uint8(200) for k in (1, 2)])
            ref = write_packed(tmp_path / f"masks_{case.case_id}.b2nd", soft, base=tmp_path)
            masks.append(CaseMasks(case_id=case.case_id, probability_kshw=ref))
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


def _prompts_of(case_id: str, truth: np.ndarray, folder: Path, *, coarse: bool) -> CasePrompts:
    rough = truth.copy()
    rough[2] = 0
    ref = write_packed(folder / f"coarse_{case_id}.b2nd", rough, base=folder)
    prompt = SlicePrompt(
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
        slices=(prompt,),
    )
    return CasePrompts(
        case_id=case_id, shape_shw=SHAPE, objects=(found,), coarse=ref if coarse else None
    )


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
