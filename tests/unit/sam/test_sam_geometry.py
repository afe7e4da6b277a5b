"""The window of SAM-2 and the prompts in it: hand-computed places, then flips and shifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sssflow.contracts.prompts import SlicePrompt
from sssflow.sam.geometry import OUTSIDE_LOGIT, Window, full_window, prompts_window
from sssflow.sam.hints import carried_hint, draw_hints
from sssflow.sam.prompt_arrays import group_by_points, sparse_and_dense
from sssflow.sam.promptable import Prompt


def test_a_point_keeps_its_place_when_nothing_is_resized():
    window = Window(x0=10, y0=20, width=64, height=64)
    assert window.points_to_input([(10, 20), (12, 25)], 64) == [(0, 0), (2, 5)]


def test_a_doubled_window_puts_pixel_centres_between_input_pixels():
    window = Window(x0=0, y0=0, width=32, height=32)
    # Pixel 0 covers input pixels 0 and 1, whose middle is 0.5.
    assert window.points_to_input([(0, 3)], 64) == [(0.5, 6.5)]


def test_an_inclusive_box_covers_its_pixels_whole():
    window = Window(x0=0, y0=0, width=32, height=32)
    # Columns 4 to 7 are input columns 8 to 15, whose outer edges are 7.5 and 15.5.
    assert window.box_to_input((4, 0, 7, 0), 64) == [(7.5, -0.5), (15.5, 1.5)]


def test_a_crop_of_equal_size_is_a_copy_and_paste_brings_it_back():
    image = torch.arange(48.0).view(1, 1, 6, 8)
    window = Window(x0=2, y0=1, width=4, height=4)
    assert torch.equal(window.crop(image, 4), image[..., 1:5, 2:6])
    back = window.paste(image[..., 1:5, 2:6], (6, 8))
    assert torch.equal(back[0, 1:5, 2:6], image[0, 0, 1:5, 2:6])
    back[0, 1:5, 2:6] = OUTSIDE_LOGIT
    assert (back == OUTSIDE_LOGIT).all()


def test_a_window_beyond_the_slice_is_filled_with_the_edge():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    seen = Window(x0=-1, y0=-2, width=4, height=4).crop(image, 4)[0, 0]
    assert seen[0].tolist() == [0, 0, 1, 2]
    assert seen[3].tolist() == [4, 4, 5, 6]


def test_the_full_window_is_the_slice():
    assert full_window((30, 40)) == Window(0, 0, 40, 30)


def _box(x0, y0, x1, y1) -> SlicePrompt:
    return SlicePrompt(slice_index=0, box_xyxy_px=(x0, y0, x1, y1))


def test_the_prompts_window_is_the_union_of_boxes_with_margin_on_both_sides():
    # Union 10..29 x 20..29: longest side 20, margin 0.5 twice: side 40, centred on (20, 25).
    window = prompts_window(
        [_box(10, 20, 19, 29), _box(25, 22, 29, 25)], (64, 64), margin=0.5, min_px=8
    )
    assert window == Window(x0=0, y0=5, width=40, height=40)


def test_without_prompts_the_window_is_the_whole_slice():
    assert prompts_window([], (30, 40), margin=0.5, min_px=8) == full_window((30, 40))


@pytest.mark.parametrize("seed", range(20))
def test_a_mirrored_slice_has_the_mirrored_window_prompts_and_crop(seed):
    rng = np.random.default_rng(seed)
    h, w = 45, 58
    x0, y0 = int(rng.integers(0, 20)), int(rng.integers(0, 20))
    box = (x0, y0, x0 + int(rng.integers(1, 30)), y0 + int(rng.integers(1, 20)))
    mirrored = (w - 1 - box[2], box[1], w - 1 - box[0], box[3])
    one, two = (prompts_window([_box(*b)], (h, w), margin=0.35, min_px=8) for b in (box, mirrored))
    assert (two.width, two.height, two.y0) == (one.width, one.height, one.y0)
    assert two.x0 == w - one.x0 - one.width
    (ax, ay), (bx, by) = one.box_to_input(box, 64)
    (cx, cy), (dx, dy) = two.box_to_input(mirrored, 64)
    assert (cx, dx) == pytest.approx((63 - bx, 63 - ax))
    assert (cy, dy) == pytest.approx((ay, by))
    image = torch.from_numpy(rng.random((1, 1, h, w)))
    seen = one.crop(image, 64).flip(-1)
    torch.testing.assert_close(two.crop(image.flip(-1), 64), seen)
    pasted = one.paste(seen.flip(-1)[..., ::4, ::4].contiguous(), (h, w)).flip(-1)
    again = two.paste(seen[..., ::4, ::4].contiguous(), (h, w))
    assert again.shape == pasted.shape == (1, h, w)


def test_a_shifted_box_moves_the_window_by_the_same_pixels():
    one = prompts_window([_box(20, 20, 30, 27)], (64, 64), margin=0.3, min_px=8)
    two = prompts_window([_box(25, 17, 35, 24)], (64, 64), margin=0.3, min_px=8)
    assert (two.x0 - one.x0, two.y0 - one.y0) == (5, -3)
    assert (two.width, two.height) == (one.width, one.height)


def test_a_mask_drawn_in_the_window_comes_back_to_its_pixels():
    mask = torch.zeros(1, 1, 60, 60)
    mask[..., 20:36, 24:44] = 1
    window = prompts_window([_box(24, 20, 43, 35)], (60, 60), margin=0.35, min_px=8)
    low = window.crop(mask, 128 // 4) * 20 - 10
    back = window.paste(low, (60, 60))[0] > 0
    assert (back != (mask[0, 0] > 0)).sum() <= 4


def test_prompts_are_grouped_by_their_number_of_points_and_never_padded():
    box = (1.0, 1.0, 5.0, 5.0)
    point = ((2.0, 2.0),)
    prompts = [
        Prompt(box_xyxy_px=box),
        Prompt(points_xy_px=point, point_labels=(1,)),
        Prompt(box_xyxy_px=box, points_xy_px=point, point_labels=(1,)),
        Prompt(box_xyxy_px=box),
        Prompt(points_xy_px=point * 2, point_labels=(1, 0)),
        Prompt(mask_logits_yx=np.zeros((8, 8), np.float32)),
    ]
    assert group_by_points(prompts) == [[0, 3], [1], [2], [4], [5]]
    for group in group_by_points(prompts):
        sparse, _ = sparse_and_dense(
            [prompts[i] for i in group], Window(0, 0, 32, 32), 32, hints=False
        )
        if sparse is not None:
            assert sparse[1].min() >= 0


def test_without_hints_a_box_alone_gives_no_mask_input():
    prompts = [Prompt(box_xyxy_px=(1.0, 1.0, 5.0, 5.0))]
    _, dense = sparse_and_dense(prompts, Window(0, 0, 32, 32), 32, hints=False)
    assert dense is None


def test_a_hint_fills_the_box_and_marks_the_point():
    # Input 32, grid 8 x 8: input columns 8 to 15 are cells 2 and 3.
    corners = np.array([[[7.5, 7.5], [15.5, 15.5]]], np.float32)
    hint = draw_hints(corners, np.array([[2, 3]]), None, 32)[0]
    inside = np.zeros((8, 8), bool)
    inside[2:4, 2:4] = True
    assert (hint[inside] == 2).all()
    assert (hint[~inside] == -6).all()
    point = np.concatenate([corners, [[[9.5, 13.5]]]], axis=1).astype(np.float32)
    marked = draw_hints(point, np.array([[2, 3, 1]]), None, 32)[0]
    assert np.unravel_index(marked.argmax(), marked.shape) == (3, 2)


def test_a_hint_with_grey_values_keeps_what_looks_like_the_point():
    # Box over cells 2 to 5 of 8; left half bright, right half dark; the point is on the left.
    grey = np.zeros((1, 8, 8), np.float32)
    grey[:, :, :4] = 0.9
    points = np.array([[[7.5, 7.5], [23.5, 23.5], [9.5, 13.5]]], np.float32)
    hint = draw_hints(points, np.array([[2, 3, 1]]), None, 32, grey)[0]
    inside = np.zeros((8, 8), bool)
    inside[2:6, 2:6] = True
    assert (hint[2:6, 2:4] >= 4).all()
    assert (hint[5, 4:6] < -3.5).all()
    assert (hint[~inside] <= 0).all()


def test_a_carried_hint_follows_the_grey_values_of_the_object():
    before, now = np.zeros((2, 1, 8, 8), np.float32)
    before[0, 2:6, 2:6] = 0.8
    now[0, 2:6, 2:4] = 0.8  # the object has become narrower
    logits = np.where(before[0] > 0, 5.0, -5.0).astype(np.float32)[None, None]
    hint = carried_hint(logits, before, now)[0, 0]
    assert (hint[3:5, 2:4] > 0).all()
    assert hint[3:5, 4:6].mean() < hint[3:5, 2:4].mean() - 5
    assert (hint[0] < 0).all()
    assert carried_hint(np.full((1, 1, 2, 2), 99.0, np.float32)).max() == 16
