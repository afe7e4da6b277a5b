"""The parts of our served models that need no server, against PyTorch and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sssflow.contracts.model import IntensityRule
from sssflow.networks.predict import resize_images
from sssflow.serving.models import predict, segmenter
from sssflow.volume.intensity import normalise


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("size_hw", [(16, 24), (40, 51), (7, 100), (33, 20)])
def test_slices_are_resized_as_in_training(size_hw, interpolation) -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 33, 40)).astype(np.float32)
    found = segmenter.resized(maps, size_hw, interpolation)
    true = resize_images(torch.from_numpy(maps), size_hw, interpolation).numpy()
    np.testing.assert_allclose(found, true, rtol=0, atol=1e-5)


def test_halving_a_row_of_four_weighs_its_cells_by_a_triangle() -> None:
    # Cell middles 0.5 to 3.5, new middles 1 and 3, reach 2: 0.75, 0.75, 0.25 of a sum of 1.75.
    expected = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    np.testing.assert_allclose(segmenter.weights(4, 2, "linear"), expected, atol=1e-7)


@pytest.mark.parametrize("kind", ["minmax", "percentile", "zscore", "window", "none"])
def test_voxels_are_scaled_as_in_training(kind) -> None:
    volume = np.random.default_rng(1).normal(40, 30, (3, 9, 8)).astype(np.float32)
    rule = IntensityRule(kind=kind)
    for given in (volume, np.full_like(volume, 3)):
        found = segmenter.scaled(given, rule.model_dump())
        np.testing.assert_allclose(found, normalise(given, rule), rtol=0, atol=1e-6)


def test_pixels_are_normalised_to_the_bit_as_by_mean_and_deviation() -> None:
    image = np.random.default_rng(2).integers(0, 256, (20, 20, 3), np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    by_hand = (image.astype(np.float32) / np.float32(255) - predict.MEAN) / predict.DEVIATION
    found = predict.normalised(image)
    np.testing.assert_array_equal(found, by_hand.transpose(2, 0, 1)[None])
    # Red: (0 - 0.485) / 0.229, (1 - 0.485) / 0.229.
    np.testing.assert_allclose(found[0, 0, 0, :2], (-2.117904, 2.248908), rtol=1e-6)


def test_objects_share_a_call_only_with_equally_many_points_and_at_most_a_chunk() -> None:
    counts = [1, 2, 1, 0, 1, 2]
    objects = [
        predict.Prompts(np.zeros((n, 2), np.float32), np.ones(n, np.int32), None) for n in counts
    ]
    assert predict.groups(objects, 2) == [[0, 2], [4], [1, 5], [3]]


def test_one_pad_point_follows_points_and_none_stands_alone() -> None:
    box = predict.Prompts(np.array([[1, 2], [3, 4]], np.float32), np.array([2, 3]), None)
    feeds = predict.decoder_inputs([box], 8)
    assert feeds["point_coords"].tolist() == [[[1, 2], [3, 4], [0, 0]]]
    assert feeds["point_labels"].tolist() == [[2, 3, -1]]
    assert feeds["has_mask"].tolist() == [0]
    mask = predict.Prompts(
        np.empty((0, 2), np.float32), np.empty(0, np.int32), np.ones((1, 8, 8), np.float32)
    )
    feeds = predict.decoder_inputs([mask], 8)
    assert feeds["point_coords"].shape == (1, 0, 2)
    assert feeds["point_labels"].shape == (1, 0)
    assert feeds["has_mask"].tolist() == [1]


def test_the_best_of_three_is_kept_where_the_prompt_is_ambiguous_else_the_first() -> None:
    iou = np.array([[0.9, 0.1, 0.5, 0.3], [0.1, 0.8, 0.2, 0.3]], np.float32)
    assert predict.choose([1, 2], iou, (0, 1)).tolist() == [2, 0]


def test_the_cache_keeps_what_was_asked_for_last_and_no_more_than_its_limit() -> None:
    cache = predict.FeatureCache(100)
    for key in (b"a", b"b"):
        cache.put(key, {"x": np.zeros(40, np.uint8)})
    assert cache.get(b"a") is not None
    cache.put(b"c", {"x": np.zeros(40, np.uint8)})
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    cache.put(b"d", {"x": np.zeros(101, np.uint8)})
    assert [cache.get(key) for key in (b"a", b"c", b"d")] == [None, None, None]
