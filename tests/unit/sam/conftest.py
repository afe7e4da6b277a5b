"""Small datasets and promptable stand-ins for the tests of the SAM-2 room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sssflow.contracts.dataset import DatasetManifest, Grid, LabelledCase, Modality, Role
from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, PromptSet, SlicePrompt
from sssflow.storage.contracts import save_contract
from sssflow.volume.packed import write_packed

DIGEST = "0" * 64


def bright_disc(shape_shw: tuple[int, int, int] = (7, 48, 56)) -> tuple[NDArray, NDArray]:
    """A bright ball's slices on grey noise: image in [0, 1] and mask."""
    rng = np.random.default_rng(3)
    s, h, w = shape_shw
    z, y, x = np.mgrid[:s, :h, :w]
    radius = np.clip(11 - 1.5 * np.abs(z - s // 2), 0, None)
    mask = (y - 22) ** 2 + (x - 30) ** 2 < radius**2
    image = np.where(mask, 0.85, 0.25) + rng.normal(0, 0.03, shape_shw)
    return np.clip(image, 0, 1).astype(np.float32), mask


def box_prompt(mask_hw: NDArray, index: int) -> SlicePrompt:
    """Bounding box and mean point of a mask."""
    ys, xs = np.nonzero(mask_hw)
    return SlicePrompt(
        slice_index=index,
        box_xyxy_px=(float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())),
        points_xy_px=((float(np.rint(xs.mean())), float(np.rint(ys.mean()))),),
        point_labels=(1,),
    )


def object_prompts(*slices: SlicePrompt, class_index: int = 1) -> ObjectPrompts:
    """An object with the given prompts."""
    return ObjectPrompts(
        class_index=class_index,
        continuity=1.0,
        window_start=0,
        window_length=2,
        accepted=True,
        component_voxels=10,
        slices=slices,
    )


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
