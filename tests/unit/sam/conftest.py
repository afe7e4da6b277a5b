"""Small datasets and prompts for the tests of the SAM-2 room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sam_cases import DIGEST, box_prompt, bright_disc, object_prompts

from sssflow.contracts.dataset import DatasetManifest, Grid, LabelledCase, Modality, Role
from sssflow.contracts.prompts import CasePrompts, PromptSet
from sssflow.storage.contracts import save_contract
from sssflow.volume.packed import write_packed


@pytest.fixture
def small_dataset(tmp_path: Path) -> Callable[[int], tuple[Path, Path]]:
    """Make `count` cases with a bright ball and prompts; returns manifest and prompts paths."""

    def make(count: int = 2) -> tuple[Path, Path]:
        folder = tmp_path / "data"
        image, mask = bright_disc()
        cases = []
        for i in range(count):
            name = f"case{i}"
            grid = Grid(
                shape_shw=image.shape,
                spacing_shw_mm=(1.0, 1.0, 1.0),
                affine_ras=tuple(tuple(float(a == b) for b in range(4)) for a in range(4)),
            )
            cases.append(
                LabelledCase(
                    case_id=name,
                    patient_id=name,
                    image=write_packed(
                        folder / "images" / f"{name}.b2nd", image * (i + 1), base=folder
                    ),
                    label=write_packed(
                        folder / "labels" / f"{name}.b2nd", mask.astype(np.uint8), base=folder
                    ),
                    grid=grid,
                    modality=Modality.MR,
                    role=Role.LABELLED,
                )
            )
        manifest = DatasetManifest(
            name="balls",
            source_layout="test",
            class_names=("background", "ball", "nothing"),
            source_digest=DIGEST,
            split_rule="all labelled",
            cases=tuple(cases),
        )
        prompts = PromptSet(
            dataset_digest=manifest.digest,
            model_digest=DIGEST,
            method="simulated",
            config_digest=DIGEST,
            class_names=manifest.class_names,
            cases=tuple(
                CasePrompts(
                    case_id=c.case_id,
                    shape_shw=image.shape,
                    objects=(object_prompts(box_prompt(mask[3], 3)),),
                )
                for c in cases
            ),
        )
        save_contract(manifest, folder / "manifest.json")
        save_contract(prompts, tmp_path / "prompts" / "prompts.json")
        return folder / "manifest.json", tmp_path / "prompts" / "prompts.json"

    return make
