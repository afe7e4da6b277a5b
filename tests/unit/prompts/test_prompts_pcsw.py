"""PCSW on volumes that are small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from sssflow.contracts.prompts import ObjectPrompts
from sssflow.errors import DataError, UsageError
from sssflow.prompts.config import PcswConfig
from sssflow.prompts.pcsw import class_taus, select_prompts, window_lengths


def empty(slices: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.zeros((slices, height, width), np.uint8)


def one(labels: np.ndarray, config: PcswConfig | None = None) -> ObjectPrompts:
    found = select_prompts(labels, config or PcswConfig())
    assert len(found) == 1
    return found[0]


def prompted(item: ObjectPrompts) -> list[int]:
    return [prompt.slice_index for prompt in item.slices]


@pytest.mark.parametrize(
    ("slices", "upward", "both"),
    [
        (1, (1,), (1,)),
        (2, (2,), (2,)),
        (3, (2, 3), (2, 3)),
        (6, (2, 3), (2, 3)),
        (8, (3, 4), (3, 4, 2)),
        (10, (4, 5), (4, 5, 3)),
        (40, (16, 17, 18, 19, 20), (16, 17, 15, 18, 14, 19, 13, 20)),
    ],
)
def test_window_lengths_start_at_the_median(
    slices: int, upward: tuple[int, ...], both: tuple[int, ...]
) -> None:
    assert window_lengths(slices, "upward") == upward
    assert window_lengths(slices, "both") == both


def test_a_block_is_one_object_with_its_box_on_every_second_slice() -> None:
    labels = empty(8)
    labels[:, 2:5, 3:9] = 1  # rows 2..4, columns 3..8 on all 8 slices; median window is 3
    item = one(labels)
    assert (item.continuity, item.window_start, item.window_length) == (1.0, 0, 3)
    assert item.accepted
    assert item.component_voxels == 3 * 18
    assert prompted(item) == [0, 2]
    assert {prompt.box_xyxy_px for prompt in item.slices} == {(3.0, 2.0, 8.0, 4.0)}
    # The ridge of a 3 x 6 block is row 3, columns 4 to 7; its middle is 5.5, the first of two 5.
    assert {prompt.points_xy_px for prompt in item.slices} == {((5.0, 3.0),)}
    assert {prompt.point_labels for prompt in item.slices} == {(1,)}


def test_components_that_touch_at_a_corner_are_one_only_with_26_neighbours() -> None:
    labels = empty(3)
    labels[0, 2:4, 2:4] = 1
    labels[1, 4:6, 4:6] = 1  # touches slice 0 by a corner only; the window of 2 starts at 0 or 1
    joined = one(labels, PcswConfig(connectivity=26))
    assert (joined.continuity, joined.component_voxels) == (1.0, 8)
    for connectivity in (6, 18):
        apart = one(labels, PcswConfig(connectivity=connectivity, best_over="all"))
        # Window [1, 2] holds only the second square, so it is whole there; [0, 1] is half and half.
        assert (apart.window_start, apart.component_voxels) == (1, 4)
    low = one(labels, PcswConfig(connectivity=6, tau=0.5, selection="first"))
    assert (low.window_start, low.continuity, low.component_voxels) == (0, 0.5, 4)
    assert prompted(low) == [0]


def test_squares_that_share_an_edge_across_slices_are_one_with_18_neighbours() -> None:
    labels = empty(2)
    labels[0, 2:4, 2:4] = 1
    labels[1, 4:6, 2:4] = 1
    assert one(labels, PcswConfig(connectivity=18, tau=0.5)).continuity == 1.0
    assert one(labels, PcswConfig(connectivity=6, tau=0.5)).continuity == 0.5


def test_diagonal_pixels_of_one_slice_are_apart_with_6_neighbours() -> None:
    labels = empty(1)
    labels[0, 1, 1] = labels[0, 2, 2] = 1
    assert one(labels, PcswConfig(connectivity=6, tau=0.5)).continuity == 0.5
    assert one(labels, PcswConfig(connectivity=18, tau=0.5)).continuity == 1.0


def test_a_gap_of_one_slice_divides_an_object() -> None:
    labels = empty(7, 8, 8)
    labels[:, 2:5, 2:5] = 1
    labels[3] = 0  # S = 7: only windows of 2, then 3
    item = one(labels)
    assert (item.window_start, item.window_length, item.continuity) == (0, 2, 1.0)
    across = one(labels, PcswConfig(selection="first", tau=0.9))
    assert across.window_start == 0
    labels[0] = labels[6] = 0  # 1, 2 | gap | 4, 5
    whole = one(labels, PcswConfig(best_over="all"))
    assert (whole.window_start, whole.window_length, whole.component_voxels) == (1, 2, 18)


def test_a_component_that_the_window_cuts_in_two_counts_as_two_inside_it() -> None:
    # Two columns joined by a bridge on slice 9 only: one component of the volume, but two in
    # every window without that slice.
    labels = empty(10, 8, 12)
    labels[:, 2:4, 1:3] = 1
    labels[:, 2:4, 8:10] = 1
    labels[9, 2:4, 1:10] = 1
    first = one(labels, PcswConfig(selection="first", tau=0.6))
    assert (first.window_start, first.window_length, first.continuity) == (6, 4, 1.0)
    halves = one(labels, PcswConfig(selection="first", tau=0.5))
    assert (halves.window_start, halves.continuity, halves.component_voxels) == (0, 0.5, 16)
    # Of the equal halves the one with the first voxel is kept.
    assert halves.slices[0].box_xyxy_px == (1.0, 2.0, 2.0, 3.0)


def test_classes_are_judged_apart_even_where_they_touch() -> None:
    labels = empty(4)
    labels[:, 2:6, 2:6] = 1
    labels[:, 2:6, 6:10] = 3
    found = select_prompts(labels, PcswConfig(), class_names=("background", "a", "b", "c"))
    assert [item.class_index for item in found] == [1, 3]
    assert [item.continuity for item in found] == [1.0, 1.0]
    assert [item.slices[0].box_xyxy_px for item in found] == [(2, 2, 5, 5), (6, 2, 9, 5)]


def test_an_absent_class_is_skipped_or_gets_the_whole_middle_slice() -> None:
    labels = empty(5, 10, 20)
    names = ("background", "a")
    assert select_prompts(labels, PcswConfig(), class_names=names) == ()
    (item,) = select_prompts(labels, PcswConfig(on_empty="full_box"), class_names=names)
    assert (item.accepted, item.window_start, item.component_voxels) == (False, -1, 0)
    assert prompted(item) == [2]
    assert item.slices[0].box_xyxy_px == (0, 0, 19, 9)
    assert item.slices[0].points_xy_px == ((9.5, 4.5),)


def scattered() -> np.ndarray:
    labels = empty(6)
    for i in range(6):
        labels[i, 1 + 3 * (i % 2), 1:4] = 1
        labels[i, 10 - 3 * (i % 2), 7:10] = 1
    labels[4, 0, 11] = 1
    return labels


def test_without_a_window_the_largest_slice_is_prompted_as_a_whole() -> None:
    item = one(scattered())
    assert (item.accepted, item.continuity) == (False, 0.0)
    assert (item.window_start, item.window_length) == (-1, 0)
    assert prompted(item) == [4]
    assert item.component_voxels == 7
    assert item.slices[0].box_xyxy_px == (1, 0, 11, 10)
    assert select_prompts(scattered(), PcswConfig(fallback="skip")) == ()


def test_many_specks_on_one_slice_are_no_object_in_the_fallback_either() -> None:
    labels = empty(9, 40, 40)
    for y, x in ((2, 2), (2, 34), (20, 2), (20, 34)):
        labels[4, y : y + 2, x : x + 3] = 1  # four of six pixels
    item = one(labels, PcswConfig(min_component_voxels=6))
    assert (item.accepted, item.component_voxels) == (False, 24)
    assert item.slices[0].box_xyxy_px == (2, 2, 36, 21)
    assert select_prompts(labels, PcswConfig(min_component_voxels=7)) == ()
    labels[4, 10:13, 10:13] = 1  # one of nine beside them
    assert one(labels, PcswConfig(min_component_voxels=7)).component_voxels == 33


def test_specks_on_one_slice_do_not_hide_an_object_on_another() -> None:
    labels = empty(9, 40, 40)
    labels[2, ::4, ::4] = 1  # a hundred specks
    labels[6, :4, ::4] = 1  # ten strokes of four pixels
    labels[6, 20:25, 10:15] = 1
    config = PcswConfig(min_component_voxels=20, tau=0.9)
    item = one(labels, config)
    assert (item.accepted, prompted(item), item.component_voxels) == (False, [6], 65)
    assert select_prompts(labels, PcswConfig(min_component_voxels=26, tau=0.9)) == ()


def test_the_centre_of_a_fallback_is_the_centre_of_mass() -> None:
    item = one(scattered(), PcswConfig(point="center"))
    # x: 1+2+3 + 7+8+9 + 11 = 41, y: 3 x 1 + 3 x 10 + 0 = 33, both over 7 pixels.
    assert item.slices[0].points_xy_px == ((41 / 7, 33 / 7),)


def test_one_slice_and_two_slices_are_volumes_too() -> None:
    single = empty(1)
    single[0, 3:6, 3:6] = 1
    item = one(single)
    assert (item.window_start, item.window_length, prompted(item)) == (0, 1, [0])
    double = empty(2)
    double[1, 3:6, 3:6] = 1
    item = one(double)
    assert (item.window_start, item.window_length, prompted(item)) == (0, 2, [1])


def test_the_best_window_has_the_highest_continuity_and_the_first_is_the_first() -> None:
    labels = empty(6)
    labels[:, 2:6, 2:6] = 1
    labels[0, 10, 10] = 1
    labels[1, 10, 0] = 1
    labels[4, 10, 10] = 1
    # Windows of 2: start 0 has 32/34, 1 has 32/33, 2 has 32/32, 3 and 4 have 32/33.
    assert one(labels).window_start == 2
    first = one(labels, PcswConfig(selection="first"))
    assert (first.window_start, first.continuity) == (0, 32 / 34)


def test_equal_continuity_is_settled_by_voxels_then_by_the_earlier_window() -> None:
    labels = empty(6)
    labels[:, 2:6, 2:6] = 1
    assert one(labels).window_start == 0
    labels[4, 2:6, 2:7] = 1  # windows 3 and 4 have 36 voxels, all others 32
    assert one(labels).window_start == 3
    labels[2, 2:6, 2:8] = 1  # windows 1 and 2 have 40
    assert one(labels).window_start == 1


def test_best_over_all_lengths_prefers_more_voxels_and_then_the_shorter() -> None:
    labels = empty(8)
    labels[:, 2:6, 2:6] = 1
    by_length = one(labels)
    over_all = one(labels, PcswConfig(best_over="all"))
    assert (by_length.window_length, over_all.window_length) == (3, 4)
    labels[3:] = 0  # windows of 3 and of 4 from slice 0 hold the same voxels
    over_all = one(labels, PcswConfig(best_over="all"))
    assert (over_all.window_start, over_all.window_length) == (0, 3)


def test_a_longer_window_is_tried_when_the_median_fails() -> None:
    # S = 3, windows of 2, then 3. Object on slice 1 with 4 voxels; each neighbour slice holds two
    # far pixels: 4/6 in the pairs, and 4/8 in all three.
    labels = empty(3)
    labels[1, 4:6, 4:6] = 1
    labels[0, 0, 0] = labels[0, 0, 10] = labels[2, 11, 0] = labels[2, 11, 11] = 1
    assert not one(labels, PcswConfig(tau=0.7)).accepted
    # A second, larger piece on slices 0 and 2 that is joined through slice 1 only as a whole.
    joined = empty(3)
    joined[0, 2:5, 2:5] = joined[2, 2:5, 2:5] = 1
    joined[1, 3, 3] = 1
    joined[1, 8:11, 8:10] = 1
    # Pairs: 10/16 = 0.625; all three slices: 19/25 = 0.76.
    item = one(joined, PcswConfig(tau=0.7))
    assert (item.window_length, item.continuity) == (3, 19 / 25)


def test_search_in_both_directions_reaches_shorter_windows() -> None:
    labels = empty(8)  # median 3, shortest 2
    for i in range(8):
        row = 2 + 6 * (i // 2 % 2)
        labels[i, row : row + 2, 2:4] = 1  # pairs of slices, each far from the next pair
    assert not one(labels).accepted
    item = one(labels, PcswConfig(search="both"))
    assert (item.window_start, item.window_length, item.continuity) == (0, 2, 1.0)


def test_tau_is_met_exactly_at_its_value_and_can_differ_by_class() -> None:
    labels = empty(2)
    for k, rows in ((1, 2), (2, 7)):
        labels[0, rows, 0:4] = k
        labels[0, rows, 8] = k  # C = 4/5
    names = ("background", "SAH", "SDH")
    at = select_prompts(labels, PcswConfig(tau=0.8), class_names=names)
    assert [item.accepted for item in at] == [True, True]
    above = select_prompts(labels, PcswConfig(tau=0.81), class_names=names)
    assert [item.accepted for item in above] == [False, False]
    for key in ("SDH", "2"):
        config = PcswConfig(tau=0.81, tau_per_class={key: 0.5})
        mixed = select_prompts(labels, config, class_names=names)
        assert [item.accepted for item in mixed] == [False, True]


def test_a_tau_for_an_unknown_class_is_a_usage_error() -> None:
    config = PcswConfig(tau_per_class={"liver": 0.5})
    with pytest.raises(UsageError, match="liver"):
        class_taus(config, ("background", "heart"))
    with pytest.raises(UsageError, match="background"):
        class_taus(PcswConfig(tau_per_class={"background": 0.5}), ("background", "heart"))


def test_prompts_are_counted_from_the_slice_of_largest_area() -> None:
    labels = empty(10)  # windows of 4, then 5
    labels[3:7, 2:4, 2:4] = 1
    labels[4, 2:5, 2:5] = 1
    item = one(labels)
    # Windows 1 to 6 have C = 1; window 3 (slices 3 to 6) has most voxels.
    assert (item.window_start, item.window_length) == (3, 4)
    assert prompted(item) == [4, 6]
    assert prompted(one(labels, PcswConfig(prompt_freq=1))) == [3, 4, 5, 6]
    assert prompted(one(labels, PcswConfig(prompt_freq=3))) == [4]
    assert prompted(one(labels, PcswConfig(prompt_slices="single"))) == [4]


def test_slices_of_the_window_without_the_object_get_no_prompt() -> None:
    labels = empty(8)
    labels[2:4, 2:4, 2:4] = 1
    item = one(labels, PcswConfig(prompt_freq=1))
    assert item.window_length == 3
    assert prompted(item) == [2, 3]


def test_only_the_kept_component_is_boxed() -> None:
    labels = empty(4)
    labels[:, 2:7, 2:7] = 1
    labels[:, 11, 11] = 1
    item = one(labels)
    assert item.continuity == 25 / 26
    assert {prompt.box_xyxy_px for prompt in item.slices} == {(2, 2, 6, 6)}


def test_the_margin_of_a_box_stays_in_the_image() -> None:
    labels = empty(2, 10, 20)
    labels[:, 1:4, 15:19] = 1
    assert one(labels, PcswConfig(box_margin_px=3)).slices[0].box_xyxy_px == (12, 0, 19, 6)


def test_the_interior_point_of_a_ring_lies_in_the_ring_and_its_centre_does_not() -> None:
    rows, columns = np.mgrid[0:21, 0:21]
    radius = np.hypot(rows - 10, columns - 10)
    labels = np.repeat(((radius > 4) & (radius < 9))[None].astype(np.uint8), 3, axis=0)
    for prompt in one(labels).slices:
        ((x, y),) = prompt.points_xy_px
        assert labels[prompt.slice_index, int(y), int(x)] == 1
    for prompt in one(labels, PcswConfig(point="center")).slices:
        assert prompt.points_xy_px == ((10.0, 10.0),)
        assert labels[prompt.slice_index, 10, 10] == 0
    assert all(p.points_xy_px == () for p in one(labels, PcswConfig(point="none")).slices)


def test_a_component_below_the_smallest_size_is_never_prompted() -> None:
    labels = empty(3)
    labels[1, 4:6, 4:6] = 1
    assert one(labels, PcswConfig(min_component_voxels=4)).accepted
    assert select_prompts(labels, PcswConfig(min_component_voxels=5)) == ()


def test_the_fragment_preset_is_what_the_fragment_does() -> None:
    config = PcswConfig(preset="fragment")
    assert (config.connectivity, config.selection, config.prompt_slices) == (6, "first", "single")
    assert (config.point, config.on_empty, config.tau) == ("center", "full_box", 0.8)
    changed = PcswConfig(preset="fragment", connectivity=26)
    assert (changed.connectivity, changed.selection) == (26, "first")
    assert PcswConfig.model_validate(config.model_dump()) == config
    assert PcswConfig() == PcswConfig(preset="recommended")


def test_a_preset_changed_in_a_printed_configuration_is_refused_not_ignored() -> None:
    printed = PcswConfig().model_dump()
    with pytest.raises(ValidationError, match="preset: fragment has no effect"):
        PcswConfig.model_validate({**printed, "preset": "fragment"})


def test_the_same_volume_gives_the_same_bytes_and_is_left_as_it_was() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, (12, 30, 30)).astype(np.uint8)
    before = labels.copy()
    names = ("background", "a", "b", "c")
    config = PcswConfig(tau=0.1)
    texts = {
        "".join(p.model_dump_json() for p in select_prompts(labels, config, class_names=names))
        for _ in range(3)
    }
    assert len(texts) == 1
    assert np.array_equal(labels, before)
    strided = np.asfortranarray(labels)
    assert select_prompts(strided, config, class_names=names) == select_prompts(
        labels, config, class_names=names
    )


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.int64),
        np.zeros((0, 4, 4), np.uint8),
        np.full((2, 4, 4), 128, np.uint8),
    ],
)
def test_an_array_that_is_no_label_map_is_refused(labels: np.ndarray) -> None:
    with pytest.raises(DataError):
        select_prompts(labels, PcswConfig())


def test_a_label_without_a_name_is_refused() -> None:
    labels = empty(2)
    labels[0, 0, 0] = 2
    with pytest.raises(UsageError, match="names"):
        select_prompts(labels, PcswConfig(), class_names=("background", "a"))


def test_127_classes_are_kept_apart() -> None:
    labels = np.zeros((2, 1, 254), np.uint8)
    labels[:, 0, ::2] = np.arange(1, 128)
    found = select_prompts(labels, PcswConfig())
    assert [item.class_index for item in found] == list(range(1, 128))
    assert all(item.continuity == 1.0 for item in found)
