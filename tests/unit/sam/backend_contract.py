"""What every back end of the prompted SAM-2 must do: one class of tests for all of them.

A back end's own test file subclasses `BackendContract` and gives the fixture `model`; `reference`
is PyTorch with the same weights. Limits are those of the export's gates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sam_cases import box_prompt, bright_disc, object_prompts

from sssflow.contracts.prompts import CasePrompts
from sssflow.errors import InternalError
from sssflow.sam.config import PropagationConfig, SamConfig
from sssflow.sam.geometry import Window
from sssflow.sam.promptable import Prompt, PromptableVideo, SliceMask
from sssflow.sam.propagate import segment_volume, to_prompt
from sssflow.sam.torch_backend import TorchPromptable, load_torch_promptable

INPUT_SIZE = 128
LOGIT_LIMIT, IOU_LIMIT, FLIP_LIMIT = 1e-3, 1e-4, 1e-4
WINDOW = Window(2, -4, 52, 52)
"""Reaches beyond the slice above and below."""


def same(found: SliceMask, true: SliceMask) -> None:
    """Two answers are equal within the gates."""
    assert found.logits_yx.shape == true.logits_yx.shape
    assert found.logits_yx.dtype == np.float32
    np.testing.assert_allclose(found.logits_yx, true.logits_yx, rtol=0, atol=LOGIT_LIMIT)
    assert np.mean((found.logits_yx > 0) != (true.logits_yx > 0)) <= FLIP_LIMIT
    assert found.predicted_iou == pytest.approx(true.predicted_iou, abs=IOU_LIMIT)
    assert found.object_score == pytest.approx(true.object_score, abs=LOGIT_LIMIT)


def _mask_prompt(mask_hw: NDArray[Any]) -> NDArray[np.float32]:
    import torch

    whole = torch.from_numpy(mask_hw.astype(np.float32))[None, None]
    share = WINDOW.crop(whole, INPUT_SIZE // 4)[0, 0].numpy()
    return (12 * share - 6).astype(np.float32)


class BackendContract:
    """Subclass it in a file of tests and override `model`."""

    @pytest.fixture(scope="class")
    def reference(self) -> TorchPromptable:
        return load_torch_promptable(SamConfig(input_size=INPUT_SIZE))

    @pytest.fixture(scope="class")
    def model(self) -> PromptableVideo:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def ball(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return bright_disc()

    @pytest.fixture(scope="class")
    def seen(self, model, reference, ball) -> tuple[Any, Any]:
        """Features of the ball from both."""
        return model.encode(ball[0], WINDOW), reference.encode(ball[0], WINDOW)

    def _compare(self, model, reference, seen, index, prompts) -> list[SliceMask]:
        found = model.segment(seen[0], index, prompts)
        true = reference.segment(seen[1], index, prompts)
        assert len(found) == len(true) == len(prompts)
        for one, other in zip(found, true, strict=True):
            same(one, other)
        return found

    def test_it_holds_to_the_protocol(self, model, seen):
        assert isinstance(model, PromptableVideo)
        assert model.input_size == INPUT_SIZE
        assert len(model.model_digest) == 64
        assert len(seen[0]) == 7
        assert seen[0].window == WINDOW

    @pytest.mark.parametrize("kind", ["box", "points", "box and points", "mask", "all"])
    def test_every_kind_of_prompt_gives_the_masks_of_pytorch(
        self, model, reference, seen, ball, kind
    ):
        whole = to_prompt(box_prompt(ball[1][3], 3), use_points=True)
        prompt = Prompt(
            box_xyxy_px=whole.box_xyxy_px if kind in ("box", "box and points", "all") else None,
            points_xy_px=((30, 22), (5, 5)) if kind in ("points", "box and points", "all") else (),
            point_labels=(1, 0) if kind in ("points", "box and points", "all") else (),
            mask_logits_yx=_mask_prompt(ball[1][3]) if kind in ("mask", "all") else None,
        )
        assert prompt.point_count == {"mask": 0, "all": 4, "box and points": 4}.get(kind, 2)
        (found,) = self._compare(model, reference, seen, 3, [prompt])
        assert (found.logits_yx > 0).any()

    def test_prompts_of_all_counts_at_once_come_back_in_their_order(
        self, model, reference, seen, ball
    ):
        box = to_prompt(box_prompt(ball[1][3], 3), use_points=False)
        point = Prompt(points_xy_px=((30, 22),), point_labels=(1,))
        mask = Prompt(mask_logits_yx=_mask_prompt(ball[1][3]))
        mixed = [point, box, mask, point, Prompt(points_xy_px=((8, 9),), point_labels=(1,)), box]
        together = self._compare(model, reference, seen, 3, mixed)
        for prompt, answer in zip(mixed, together, strict=True):
            same(answer, model.segment(seen[0], 3, [prompt])[0])

    def test_more_prompts_than_a_chunk_holds_are_all_answered(self, model, reference, seen):
        many = [
            Prompt(points_xy_px=((float(3 + i), float(40 - i)),), point_labels=(i % 2,))
            for i in range(33)
        ]
        found = self._compare(model, reference, seen, 2, many)
        assert len({answer.logits_yx.tobytes() for answer in found}) > 16

    def test_no_prompts_give_no_masks(self, model, seen):
        assert model.segment(seen[0], 0, []) == []

    def test_memory_carries_an_object_both_ways_as_in_pytorch(self, model, reference, seen, ball):
        prompts = {i: to_prompt(box_prompt(ball[1][i], i), use_points=True) for i in (2, 4)}
        passes = [
            (m, f, *m.begin(f, prompts)) for m, f in zip((model, reference), seen, strict=True)
        ]
        for index in prompts:
            same(passes[0][3][index], passes[1][3][index])
        for path, reverse in (((3, 5, 6), False), ((3, 1, 0), True)):
            memories = [memory for _, _, memory, _ in passes]
            for index in path:
                steps = [
                    m.track(f, memory, index, reverse=reverse)
                    for (m, f, _, _), memory in zip(passes, memories, strict=True)
                ]
                memories = [memory for memory, _ in steps]
                same(steps[0][1], steps[1][1])

    def test_a_memory_is_never_changed_so_that_two_passes_can_start_from_it(
        self, model, seen, ball
    ):
        prompt = to_prompt(box_prompt(ball[1][3], 3), use_points=True)
        memory, _ = model.begin(seen[0], {3: prompt})
        first = model.track(seen[0], memory, 4, reverse=False)[1]
        model.track(seen[0], memory, 2, reverse=True)
        again = model.track(seen[0], memory, 4, reverse=False)[1]
        np.testing.assert_array_equal(first.logits_yx, again.logits_yx)

    @pytest.mark.parametrize("mode", ["coarse", "memory", "chain", "prompted_only"])
    def test_a_volume_gets_the_probabilities_of_pytorch(self, model, reference, ball, mode):
        image, mask = ball
        prompts = CasePrompts(
            case_id="a",
            shape_shw=image.shape,
            objects=(object_prompts(box_prompt(mask[3], 3)),),
        )
        config = SamConfig(input_size=INPUT_SIZE, propagation=PropagationConfig(mode=mode))
        coarse = mask.astype(np.uint8) if mode == "coarse" else None
        found, true = (
            segment_volume(m, image, prompts, 2, config, coarse) for m in (model, reference)
        )
        steps = np.abs(found.probability_kshw.astype(int) - true.probability_kshw.astype(int))
        assert steps.max() <= 1
        flipped = (found.probability_kshw >= 128) != (true.probability_kshw >= 128)
        assert flipped.mean() <= FLIP_LIMIT
        assert found.probability_kshw.any()

    def test_features_of_another_backend_are_refused(self, model):
        class Foreign:
            window = WINDOW

            def __len__(self) -> int:
                return 1

        with pytest.raises(InternalError, match="another backend"):
            model.segment(Foreign(), 0, [Prompt(points_xy_px=((1, 1),), point_labels=(1,))])
