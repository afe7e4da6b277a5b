"""Simulated prompts come from true masks of cases that have one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sssflow.configuration import parse_config
from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import Grid, LabelledCase, Modality, Role, UnlabelledCase
from sssflow.errors import DataError, UsageError
from sssflow.prompts.config import SimulateConfig
from sssflow.prompts.simulate import jitter_box, simulate_case, simulate_object, simulate_slice
from sssflow.volume.packed import write_packed

GRID = Grid(
    shape_shw=(4, 16, 20),
    spacing_shw_mm=(8, 1.5, 1.5),
    affine_ras=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
)


def labels() -> np.ndarray:
    mask = np.zeros(GRID.shape_shw, np.uint8)
    mask[:, 2:6, 3:9] = 1
    mask[1, 2:7, 3:9] = 1
    mask[2, 10:14, 10:18] = 2
    return mask


def labelled_case(folder: Path) -> LabelledCase:
    ref = write_packed(folder / "labels" / "p1.b2nd", labels(), base=folder)
    return LabelledCase(
        case_id="p1",
        patient_id="p1",
        image=ref,
        grid=GRID,
        modality=Modality.MR,
        role=Role.VALIDATION,
        label=ref,
    )


def test_true_boxes_are_exact_and_start_from_the_largest_slice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = simulate_case(labelled_case(tmp_path), tmp_path, 4, SimulateConfig(), rng)
    assert [item.class_index for item in found.objects] == [1, 2]
    first, second = found.objects
    assert [p.slice_index for p in first.slices] == [1, 3]
    assert [p.box_xyxy_px for p in first.slices] == [(3, 2, 8, 6), (3, 2, 8, 5)]
    assert [p.slice_index for p in second.slices] == [2]
    assert second.component_voxels == 32


def test_an_unlabelled_case_is_refused(tmp_path: Path) -> None:
    ref = ObjectRef(uri="images/p1.b2nd", size_bytes=1, sha256="0" * 64)
    case = UnlabelledCase(case_id="p1", patient_id="p1", image=ref, grid=GRID, modality=Modality.MR)
    assert not hasattr(case, "label")
    with pytest.raises(DataError, match="without a mask"):
        simulate_case(case, tmp_path, 4, SimulateConfig(), np.random.default_rng(0))  # type: ignore[arg-type]


def test_the_first_click_is_positive_and_every_point_lies_where_its_label_says() -> None:
    config = SimulateConfig(positive_points=5, negative_points=6)
    mask_hw = labels()[2] == 2
    for seed in range(50):
        prompt = simulate_slice(mask_hw, 2, config, np.random.default_rng(seed))
        assert prompt.point_labels == (1,) * 5 + (0,) * 6
        assert len(set(prompt.points_xy_px)) >= 10  # the deepest may be drawn a second time
        for (x, y), label in zip(prompt.points_xy_px, prompt.point_labels, strict=True):
            assert mask_hw[int(y), int(x)] == bool(label)


def test_an_object_that_fills_the_image_gets_no_negative_point() -> None:
    config = SimulateConfig(negative_points=3)
    prompt = simulate_slice(np.ones((5, 5), bool), 0, config, np.random.default_rng(0))
    assert prompt.points_xy_px == ((2.0, 2.0),)
    assert prompt.box_xyxy_px == (0, 0, 4, 4)


def test_a_jittered_side_moves_by_at_most_its_share_and_stays_in_the_image() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([jitter_box((4, 0, 13, 19), 0.2, (20, 30), rng) for _ in range(300)])
    moved = np.abs(boxes - [4, 0, 13, 19]).max(axis=0)
    assert (moved <= [2, 4, 2, 4]).all()
    assert (moved >= [1.5, 3, 1.5, 3]).all()
    assert (boxes >= 0).all()
    assert boxes[:, [1, 3]].max() <= 19
    assert boxes[:, [0, 2]].max() <= 29
    assert (boxes[:, 0] <= boxes[:, 2]).all()


def test_the_widest_jitter_of_one_pixel_gives_a_valid_box() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        x0, y0, x1, y1 = jitter_box((3, 3, 3, 3), 0.5, (8, 8), rng)
        assert x0 <= x1
        assert y0 <= y1


def test_equal_seeds_give_equal_prompts_and_other_seeds_others() -> None:
    config = SimulateConfig(box_jitter=0.1, positive_points=3, negative_points=2)
    mask_shw = labels() == 1

    def drawn(seed: int) -> object:
        return simulate_object(mask_shw, 1, config, np.random.default_rng(seed))

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)


def test_small_slices_are_left_out_and_an_empty_object_gives_nothing() -> None:
    rng = np.random.default_rng(0)
    mask_shw = labels() == 1
    item = simulate_object(mask_shw, 1, SimulateConfig(min_pixels=25, prompt_freq=1), rng)
    assert item is not None
    assert [p.slice_index for p in item.slices] == [1]
    assert simulate_object(mask_shw, 1, SimulateConfig(min_pixels=31), rng) is None
    assert simulate_object(np.zeros((3, 4, 4), bool), 1, SimulateConfig(), rng) is None


def test_a_prompt_that_says_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="box or a positive point"):
        parse_config(SimulateConfig, {"box": False, "positive_points": 0})
