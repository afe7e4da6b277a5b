"""Masks through a volume: the order of slices, reach, absence, merging; then nano SAM-2 itself."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sam_cases import box_prompt, bright_disc, object_prompts

from sssflow.contracts.prompts import CasePrompts
from sssflow.sam.build import build_sam2
from sssflow.sam.config import PropagationConfig, SamConfig
from sssflow.sam.geometry import Window
from sssflow.sam.promptable import Features, Prompt, Promptable, PromptableVideo, SliceMask
from sssflow.sam.propagate import case_window, follow, merge, segment_volume, to_prompt
from sssflow.sam.torch_backend import TorchPromptable, load_torch_promptable


@dataclass
class SeenSlices:
    """Features of the stand-in: the cropped slices."""

    slices_bhw: np.ndarray
    window: Window

    def __len__(self) -> int:
        return len(self.slices_bhw)


class Brightness:
    """A backend that calls bright pixels the object and writes down what it is asked."""

    backend = "torch"
    model_digest = "0" * 64
    input_size = 32

    def __init__(self) -> None:
        self.tracked: list[tuple[int, bool]] = []

    def encode(self, slices_bhw: Any, window: Window) -> SeenSlices:
        import torch

        seen = window.crop(torch.from_numpy(slices_bhw)[:, None], 8)[:, 0].numpy()
        return SeenSlices(seen, window)

    def segment(
        self, features: Features, slice_index: int, prompts: Sequence[Prompt]
    ) -> list[SliceMask]:
        return [self._answer(features, slice_index) for _ in prompts]

    def begin(
        self, features: Features, prompts: Mapping[int, Prompt]
    ) -> tuple[tuple[int, ...], dict[int, SliceMask]]:
        return tuple(prompts), {i: self._answer(features, i) for i in prompts}

    def track(
        self, features: Features, memory: Any, slice_index: int, *, reverse: bool
    ) -> tuple[Any, SliceMask]:
        neighbour = slice_index + (1 if reverse else -1)
        assert neighbour in memory, "a slice was visited before its neighbour"
        self.tracked.append((slice_index, reverse))
        return (*memory, slice_index), self._answer(features, slice_index)

    def _answer(self, features: Any, index: int) -> SliceMask:
        bright = features.slices_bhw[index] > 0.5
        logits = np.where(bright, 4.0, -4.0).astype(np.float32)
        return SliceMask(logits, 0.9, 5.0 if bright.any() else -5.0)


MEMORY = SamConfig(propagation=PropagationConfig(mode="memory", max_distance=None))
CHAIN = SamConfig(propagation=PropagationConfig(mode="chain", max_distance=None))


def _case(shape, *objects) -> CasePrompts:
    return CasePrompts(case_id="a", shape_shw=shape, objects=objects)


def _dice(found, true) -> float:
    return 2 * (found & true).sum() / (found.sum() + true.sum())


def test_the_backends_hold_to_the_protocol():
    model = TorchPromptable(build_sam2("nano", input_size=64), model_digest="0" * 64)
    assert isinstance(model, PromptableVideo)
    assert isinstance(Brightness(), Promptable)


def test_both_directions_start_at_the_prompts_and_meet_between_them():
    model = Brightness()
    volume = np.ones((8, 16, 16), np.float32)
    mask = np.ones((16, 16), bool)
    item = object_prompts(box_prompt(mask, 2), box_prompt(mask, 5))
    features = model.encode(volume, Window(0, 0, 16, 16))
    found = follow(model, features, item, range(8), MEMORY, (16, 16))
    up, down = [(i, False) for i in (3, 4, 6, 7)], [(i, True) for i in (4, 3, 1, 0)]
    assert model.tracked == up + down
    assert {i: len(a) for i, a in found.items()} == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 1, 6: 1, 7: 1}


def test_reach_beyond_the_prompted_slices_is_limited():
    model = Brightness()
    volume = np.ones((9, 16, 16), np.float32)
    prompts = _case((9, 16, 16), object_prompts(box_prompt(np.ones((16, 16), bool), 4)))
    config = SamConfig(propagation=PropagationConfig(mode="memory", max_distance=1))
    result = segment_volume(model, volume, prompts, 2, config)
    assert result.probability_kshw[0].any(axis=(1, 2)).tolist() == [
        i in (3, 4, 5) for i in range(9)
    ]
    assert result.objects[0].object_score[2] is None
    assert result.objects[0].prompted == tuple(i == 4 for i in range(9))


def test_prompted_only_leaves_the_other_slices_empty():
    model = Brightness()
    volume = np.ones((5, 16, 16), np.float32)
    mask = np.ones((16, 16), bool)
    prompts = _case((5, 16, 16), object_prompts(box_prompt(mask, 1), box_prompt(mask, 3)))
    config = SamConfig(propagation=PropagationConfig(mode="prompted_only"))
    result = segment_volume(model, volume, prompts, 2, config)
    assert result.probability_kshw[0].any(axis=(1, 2)).tolist() == [False, True, False, True, False]
    assert model.tracked == []


def test_a_direction_is_given_up_after_absent_slices_and_absent_means_zero():
    model = Brightness()
    volume = np.ones((9, 16, 16), np.float32)
    volume[5:8] = 0
    prompts = _case((9, 16, 16), object_prompts(box_prompt(np.ones((16, 16), bool), 2)))
    result = segment_volume(model, volume, prompts, 2, MEMORY)
    assert [i for i, _ in model.tracked] == [3, 4, 5, 6, 1, 0]
    present = result.probability_kshw[0].any(axis=(1, 2))
    assert present.tolist() == [True] * 5 + [False] * 4
    assert result.objects[0].object_score[5] == -5.0


def test_a_class_without_prompts_is_all_zero_and_absent():
    volume = np.ones((3, 16, 16), np.float32)
    prompts = _case((3, 16, 16), object_prompts(box_prompt(np.ones((16, 16), bool), 1)))
    result = segment_volume(Brightness(), volume, prompts, 4, SamConfig())
    assert result.probability_kshw.shape == (3, 3, 16, 16)
    assert not result.probability_kshw[1:].any()
    assert [o.class_index for o in result.objects] == [1]
    empty = segment_volume(Brightness(), volume, _case((3, 16, 16)), 4, SamConfig())
    assert empty.objects == ()
    assert not empty.probability_kshw.any()


def test_a_coarse_mask_that_leads_out_of_the_window_is_not_asked_for():
    volume = np.ones((4, 64, 64), np.float32)
    coarse = np.zeros((4, 64, 64), np.uint8)
    coarse[:, 4:12, 4:12] = 1
    coarse[2, :, 40:] = 1  # another focus, larger
    coarse[3] = 0
    coarse[3, 4:12, 20:28] = 1  # half of it
    prompts = _case(coarse.shape, object_prompts(box_prompt(coarse[0] == 1, 0)))
    config = SamConfig()
    assert case_window(prompts, config) == Window(-8, -8, 32, 32)
    result = segment_volume(Brightness(), volume, prompts, 2, config, coarse)
    assert [score is not None for score in result.objects[0].object_score] == [1, 1, 0, 0]
    whole = config.model_copy(update={"roi": "full"})
    result = segment_volume(Brightness(), volume, prompts, 2, whole, coarse)
    assert None not in result.objects[0].object_score


def test_memory_for_a_volume_is_little_more_than_its_result():
    volume = np.ones((32, 96, 96), np.float32)
    mask = np.ones((96, 96), bool)
    prompts = _case(volume.shape, object_prompts(box_prompt(mask, 3)))
    tracemalloc.start()
    result = segment_volume(Brightness(), volume, prompts, 9, MEMORY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.probability_kshw[0].all()
    assert peak < 3 * result.probability_kshw.nbytes


def test_one_object_merges_to_its_sigmoid_and_two_share_the_voxel():
    # Logit 0: sigmoid 0.5 = 127.5 of 255. Two objects of logit 0: a third each with background.
    one = merge(np.zeros((1, 1, 1, 1), np.float32), np.ones((1, 1), bool))
    assert one.item() in (127, 128)
    two = merge(np.zeros((2, 1, 1, 1), np.float32), np.ones((2, 1), bool))
    assert two.ravel().tolist() == [85, 85]


def test_merging_follows_the_largest_logit_and_ignores_absent_objects():
    logits = np.array([3.0, 8.0, 5.0], np.float32).reshape(3, 1, 1, 1)
    present = np.array([[True], [False], [True]])
    merged = merge(logits, present).ravel()
    assert merged.argmax() == 2
    assert merged[1] == 0
    assert 253 <= merged.astype(int).sum() <= 255


def test_points_are_dropped_on_request_but_never_the_last_prompt():
    boxed = box_prompt(np.ones((4, 4), bool), 0)
    assert to_prompt(boxed, use_points=False).point_labels == ()
    bare = boxed.model_copy(update={"box_xyxy_px": None})
    assert to_prompt(bare, use_points=False).point_labels == (1,)


@pytest.fixture(scope="module")
def nano() -> TorchPromptable:
    """The packaged model."""
    return load_torch_promptable(SamConfig(input_size=128))


def _ball_case():
    image, mask = bright_disc()
    prompts = _case(image.shape, object_prompts(box_prompt(mask[3], 3)))
    return image, mask, prompts


@pytest.mark.parametrize("config", [MEMORY, CHAIN], ids=["memory", "chain"])
def test_nano_carries_a_bright_ball_from_its_middle_to_both_ends(nano, config):
    image, mask, prompts = _ball_case()
    found = segment_volume(nano, image, prompts, 2, config).probability_kshw[0] >= 128
    assert _dice(found, mask) >= 0.8
    assert found[0].any()
    assert found[6].any()


@pytest.mark.parametrize("config", [MEMORY, CHAIN], ids=["memory", "chain"])
def test_nano_gives_the_same_bytes_twice(nano, config):
    image, _, prompts = _ball_case()
    one, two = (segment_volume(nano, image, prompts, 2, config) for _ in range(2))
    assert one.probability_kshw.tobytes() == two.probability_kshw.tobytes()
    assert one.objects == two.objects


@pytest.mark.parametrize("config", [MEMORY, CHAIN], ids=["memory", "chain"])
def test_a_volume_upside_down_gives_the_masks_upside_down(nano, config):
    image, mask, prompts = _ball_case()
    last = len(image) - 1
    turned = _case(image.shape, object_prompts(box_prompt(mask[3], last - 3)))
    one = segment_volume(nano, image, prompts, 2, config).probability_kshw
    two = segment_volume(nano, image[::-1].copy(), turned, 2, config).probability_kshw
    assert np.abs(one.astype(int) - two[:, ::-1].astype(int)).max() <= 1


@pytest.mark.parametrize("config", [MEMORY, CHAIN], ids=["memory", "chain"])
def test_a_volume_moved_by_whole_pixels_gives_the_masks_moved(nano, config):
    image, mask, _ = _ball_case()
    window = config.model_copy(update={"roi_margin": 0.2})
    moved = np.roll(image, (3, -4), axis=(1, 2))
    box = box_prompt(mask[3], 3)
    moved_box = box_prompt(np.roll(mask[3], (3, -4), (0, 1)), 3)
    one = segment_volume(nano, image, _case(image.shape, object_prompts(box)), 2, window)
    two = segment_volume(nano, moved, _case(image.shape, object_prompts(moved_box)), 2, window)
    back = np.roll(two.probability_kshw, (-3, 4), axis=(2, 3))
    assert np.abs(one.probability_kshw.astype(int) - back.astype(int)).max() <= 1


def test_a_chain_ends_where_the_object_shrinks_away_beyond_the_prompts():
    model = Brightness()
    volume = np.zeros((6, 16, 16), np.float32)
    volume[1:4, 2:14, 2:14] = 1
    volume[4, 6:8, 6:8] = 1  # a thirtieth of the slice before
    prompts = _case((6, 16, 16), object_prompts(box_prompt(volume[2] > 0, 2)))
    result = segment_volume(model, volume, prompts, 2, CHAIN)
    present = result.probability_kshw[0].any(axis=(1, 2))
    assert present.tolist() == [False, True, True, True, False, False]
    assert model.tracked == []


def test_prompts_of_one_slice_do_not_disturb_each_other(nano):
    image, mask, _ = _ball_case()
    p = to_prompt(box_prompt(mask[3], 3), use_points=True)
    bare = Prompt(box_xyxy_px=p.box_xyxy_px)
    features = nano.encode(image, Window(0, 0, 56, 48))
    together = nano.segment(features, 3, [p, bare, p])
    alone = [nano.segment(features, 3, [q])[0] for q in (p, bare, p)]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.logits_yx, b.logits_yx, atol=1e-4)
    assert nano.segment(features, 3, []) == []
