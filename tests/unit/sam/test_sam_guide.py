"""Coarse masks as prompts: which slices are prompted, with what, and that nothing travels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, SlicePrompt
from sssflow.sam.config import SamConfig
from sssflow.sam.geometry import OUTSIDE_LOGIT, Window, full_window
from sssflow.sam.guide import guided_prompts, prompt_from_mask
from sssflow.sam.promptable import Prompt, SliceMask
from sssflow.sam.propagate import segment_volume


class Echo:
    """Answers with the mask prompt it was given, or with nothing, and remembers who asked."""

    backend = "torch"
    model_digest = "0" * 64
    input_size = 32

    def __init__(self) -> None:
        self.asked: list[tuple[int, Prompt]] = []

    def encode(self, slices_bhw, window):
        return EchoFeatures(window, len(slices_bhw))

    def segment(self, features, slice_index, prompts):
        self.asked += [(slice_index, p) for p in prompts]
        blank = np.full((8, 8), -9.0, np.float32)
        given = [blank if p.mask_logits_yx is None else p.mask_logits_yx for p in prompts]
        return [SliceMask(mask, 0.9, 5.0) for mask in given]


class EchoFeatures:
    def __init__(self, window: Window, count: int) -> None:
        self.window, self._count = window, count

    def __len__(self) -> int:
        return self._count


@pytest.fixture
def coarse() -> np.ndarray:
    labels = np.zeros((5, 32, 32), np.uint8)
    labels[1:4, 8:16, 4:12] = 1
    labels[3, 20:24, 20:24] = 2
    return labels


def _prompts(slice_index: int) -> CasePrompts:
    box = SlicePrompt(
        slice_index=slice_index,
        box_xyxy_px=(4, 8, 11, 15),
        points_xy_px=((7, 11),),
        point_labels=(1,),
    )
    item = ObjectPrompts(
        class_index=1,
        continuity=1.0,
        window_start=slice_index,
        window_length=1,
        accepted=True,
        component_voxels=64,
        slices=(box,),
    )
    return CasePrompts(case_id="a", shape_shw=(5, 32, 32), objects=(item,))


def test_box_and_deepest_point_come_from_the_largest_piece() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:7, 3:8] = True
    mask[9, 9] = True
    prompt = prompt_from_mask(mask)
    assert prompt is not None
    assert prompt.box_xyxy_px == (3, 2, 7, 6)
    assert prompt.points_xy_px == ((5, 4),)
    assert prompt_from_mask(np.zeros((4, 4), bool)) is None


def test_a_mask_prompt_is_the_share_of_each_cell_as_a_logit() -> None:
    mask = np.zeros((1, 32, 32), bool)
    mask[0, :, :16] = True
    found = guided_prompts(mask, {}, range(1), full_window((32, 32)), 32)
    logits = found[0].mask_logits_yx
    assert logits is not None
    assert logits.shape == (8, 8)
    assert np.allclose(logits[:, :3], 6)
    assert np.allclose(logits[:, 5:], -6)


def test_each_slice_with_the_object_is_asked_for_once_and_no_other(coarse) -> None:
    model = Echo()
    config = SamConfig(roi="full", input_size=32)
    result = segment_volume(
        model, np.zeros((5, 32, 32), np.float32), _prompts(2), 3, config, coarse
    )
    assert [index for index, _ in model.asked] == [1, 2, 3]
    found = result.probability_kshw >= 128
    # The bilinear way back rounds the four corners by three pixels each and adds nothing.
    assert found[0].sum((1, 2)).tolist() == [0, 52, 52, 52, 0]
    assert not (found[0] & (coarse != 1)).any()
    assert not found[1].any(), "class 2 has no prompt of PCSW, so its coarse mask counts nothing"
    assert result.objects[0].prompted == (False, False, True, False, False)
    assert result.objects[0].predicted_iou[0] is None


def test_the_reach_limits_the_slices(coarse) -> None:
    model = Echo()
    config = SamConfig.model_validate(
        {"roi": "full", "input_size": 32, "propagation": {"max_distance": 0}}
    )
    segment_volume(model, np.zeros((5, 32, 32), np.float32), _prompts(2), 3, config, coarse)
    assert len(model.asked) == 1


def test_a_prompted_slice_without_a_coarse_mask_keeps_its_prompt(coarse) -> None:
    model = Echo()
    config = SamConfig(roi="full", input_size=32)
    segment_volume(model, np.zeros((5, 32, 32), np.float32), _prompts(0), 3, config, coarse)
    first = next(prompt for index, prompt in model.asked if index == 0)
    assert first.mask_logits_yx is None
    assert first.box_xyxy_px == (4, 8, 11, 15)


def test_a_window_beyond_the_mask_gives_the_background_logit() -> None:
    window = Window(0, 0, 16, 16)
    pasted = window.paste(torch.full((1, 1, 4, 4), 3.0), (32, 32))
    assert float(pasted[0, 31, 31]) == OUTSIDE_LOGIT
