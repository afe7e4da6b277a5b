"""Prompts from where a specialist is sure: exact clicks, signs, geometry, guards."""

from __future__ import annotations

import numpy as np
import pytest

from sssflow.prompts.boxes import deepest, extent
from sssflow.prompts.config import ReliableConfig
from sssflow.prompts.reliable_points import accepted_area, largest_piece, reliable_prompt

EVERYWHERE = np.ones((16, 20), np.bool_)


def disc(centre=(7, 9), radius=3.5, shape=(16, 20)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(rows - centre[0], columns - centre[1]) < radius


def ask(predicted, reliable=EVERYWHERE, seed=0, **settings):
    config = ReliableConfig(**{"min_pixels": 1, "box_margin_share": 0, **settings})
    return reliable_prompt(predicted, reliable, config, np.random.default_rng(seed))


def test_one_click_lies_on_the_deepest_pixel_and_the_box_holds_the_object():
    predicted = np.zeros((16, 20), np.bool_)
    predicted[3:8, 6:15] = True  # 5 rows, 9 columns: depth 3 in row 5, columns 8 to 12
    found = ask(predicted, positive_points=1, negative_points=0)
    assert found.points_pd.tolist() == [[5, 10]]
    assert found.labels_p.tolist() == [1]
    assert found.box_2d.tolist() == [[3, 6], [7, 14]]
    assert (found.support == predicted).all()


def test_clicks_avoid_what_is_uncertain_and_their_sign_is_that_of_the_prediction():
    predicted = disc()
    reliable = EVERYWHERE.copy()
    reliable[:, 10:] = False  # the right part of disc and background is doubted
    found = ask(predicted, reliable, positive_points=8, negative_points=8)
    assert len(found.points_pd) == 16
    assert len(np.unique(found.points_pd, axis=0)) == 16
    rows, columns = found.points_pd.T
    assert reliable[rows, columns].all()
    assert (predicted[rows, columns] == (found.labels_p == 1)).all()
    assert found.labels_p.tolist() == [1] * 8 + [0] * 8
    assert found.box_2d[1, 1] == 9  # the confident piece ends where the doubt begins


def test_negative_clicks_stay_near_the_object():
    predicted = disc(radius=2.5)  # rows 5 to 9, columns 7 to 11; a margin of 3
    for seed in range(20):
        points = ask(predicted, seed=seed, negative_points=16).points_pd
        assert (points >= [2, 4]).all()
        assert (points <= [12, 14]).all()


@pytest.mark.parametrize("seed", range(20))
def test_the_first_click_on_an_object_is_positive_whatever_is_drawn(seed):
    rng = np.random.default_rng(seed)
    predicted = disc(tuple(rng.uniform(4, 11, 2)), rng.uniform(1.5, 5))
    reliable = rng.random(predicted.shape) < 0.7
    found = ask(predicted, reliable, seed=seed, negative_points=16)
    assert found.labels_p[0] == 1
    assert (predicted & reliable)[tuple(found.points_pd[0])]


@pytest.mark.parametrize(
    "move",
    [
        lambda a: a[:, ::-1],
        lambda a: a[::-1],
        lambda a: np.rot90(a, 1),
        lambda a: np.rot90(a, 3),
        lambda a: a[2:15, 1:18],
    ],
    ids=["mirrored", "upside down", "quarter turn", "three quarters", "cropped"],
)
def test_the_prompt_moves_with_the_view(move):
    predicted = disc((7, 9), 4.2)
    predicted[5:9, 13:15] = True  # lopsided: nothing is its own mirror image
    index = np.arange(predicted.size).reshape(predicted.shape)
    here = ask(predicted, positive_points=1, negative_points=0)
    there = ask(move(predicted), move(EVERYWHERE), positive_points=1, negative_points=0)
    assert move(index)[tuple(there.points_pd[0])] == index[tuple(here.points_pd[0])]
    low, high = there.box_2d
    inside = move(index)[low[0] : high[0] + 1, low[1] : high[1] + 1]
    low, high = here.box_2d
    expected = index[low[0] : high[0] + 1, low[1] : high[1] + 1]
    assert sorted(inside.ravel()) == sorted(expected.ravel())
    assert (there.support == move(here.support)).all()


def test_the_box_and_first_click_belong_to_the_largest_piece_and_other_clicks_to_all():
    predicted = np.zeros((16, 20), np.bool_)
    predicted[1:5, 1:5] = True
    predicted[8:15, 8:15] = True
    found = ask(predicted, positive_points=16, seed=1, negative_points=0)
    assert found.box_2d.tolist() == [[8, 8], [14, 14]]
    assert found.points_pd[0].tolist() == [11, 11]
    assert (found.points_pd < 5).all(axis=1).any()


@pytest.mark.parametrize(
    ("share", "box"),
    [
        (0, [[3, 4], [7, 12]]),
        (0.05, [[2, 3], [8, 13]]),  # half a pixel of 9 columns: rounded up
        (0.3, [[0, 1], [10, 15]]),
        (1, [[0, 0], [15, 19]]),  # the image ends
    ],
)
def test_the_box_of_the_confident_core_is_widened_for_the_unsure_rim(share, box):
    predicted = np.zeros((16, 20), np.bool_)
    predicted[2:9, 3:14] = True
    reliable = EVERYWHERE.copy()
    reliable[1:10, 2:15] = False  # a rim, one pixel inside and one outside
    reliable[3:8, 4:13] = True
    found = ask(predicted, reliable, box_margin_share=share)
    assert found.box_2d.tolist() == box
    assert np.argwhere(found.support)[[0, -1]].tolist() == [[3, 4], [7, 12]]
    assert found.margin_px == {0: 0, 0.05: 1, 0.3: 3, 1: 9}[share]


def test_a_box_has_a_margin_unless_it_is_asked_to_have_none():
    assert ReliableConfig().box_margin_share > 0


@pytest.mark.parametrize(
    ("predicted", "reliable", "settings"),
    [
        (np.zeros((16, 20), np.bool_), EVERYWHERE, {}),
        (disc(), ~disc(), {}),
        (disc(), EVERYWHERE, {"min_pixels": 38}),
        (disc(), EVERYWHERE, {"max_share": 0.11}),
        (EVERYWHERE, EVERYWHERE, {}),
    ],
    ids=["absent", "nowhere confident", "a speck", "too large", "everything"],
)
def test_what_is_not_worth_a_prompt_gets_none(predicted, reliable, settings):
    assert disc().sum() == 37  # of 320 pixels: 0.1156
    assert ask(predicted, reliable, **settings) is None


def test_the_guards_let_pass_what_just_fits():
    assert ask(disc(), min_pixels=37, max_share=0.12) is not None


def test_equal_seeds_give_equal_clicks_and_others_do_not():
    draws = [ask(disc(), seed=seed, positive_points=8).points_pd.tolist() for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_fewer_pixels_than_clicks_give_fewer_clicks():
    predicted = np.zeros((3, 3), np.bool_)
    predicted[1, 1] = True
    settings = {"positive_points": 5, "negative_points": 16, "max_share": 1.0}
    found = ask(predicted, np.ones_like(predicted), **settings)
    assert found.points_pd[0].tolist() == [1, 1]
    assert found.labels_p.tolist() == [1] + [0] * 8


def test_volumes_are_prompted_like_slices():
    predicted = np.zeros((6, 9, 9), np.bool_)
    predicted[1:4, 2:7, 3:8] = True
    found = ask(predicted, np.ones_like(predicted), positive_points=4, negative_points=4)
    assert found.points_pd[0].tolist() == [2, 4, 5]
    assert found.box_2d.tolist() == [[1, 2, 3], [3, 6, 7]]
    assert (predicted[tuple(found.points_pd.T)] == (found.labels_p == 1)).all()
    assert extent(predicted)[0].tolist() == [1, 2, 3]
    assert deepest(predicted) == (2, 4, 5)


def test_the_largest_piece_counts_diagonal_neighbours_and_the_first_of_equals():
    mask = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], np.bool_)
    assert np.argwhere(largest_piece(mask)).tolist() == [[0, 0], [1, 1]]
    with pytest.raises(ValueError, match="empty"):
        largest_piece(np.zeros((2, 2), np.bool_))


@pytest.mark.parametrize(
    ("found", "specialist", "accepted"),
    [(50, 100, True), (49, 100, False), (200, 100, True), (201, 100, False), (0, 5, False)],
)
def test_a_mask_of_another_size_than_its_object_is_not_believed(found, specialist, accepted):
    assert accepted_area(found, specialist, 2.0) is accepted
    assert accepted_area(specialist, 0, 2.0) is False
