"""Surface distances: hand-computed first, then against medpy and MONAI."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from medpy.metric import binary
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter

from sssflow.errors import InternalError
from sssflow.evaluation.distances import (
    crop_to_joint_box,
    image_diagonal,
    surface,
    surface_distances,
)

Mask = NDArray[np.bool_]
UNIT = (1.0, 1.0, 1.0)


def voxels(shape: tuple[int, int, int], *places: tuple[int, int, int]) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    for place in places:
        mask[place] = True
    return mask


def random_mask(generator: np.random.Generator, shape: tuple[int, int, int]) -> Mask:
    noise = gaussian_filter(generator.standard_normal(shape), 1.5)
    return noise > np.quantile(noise, generator.uniform(0.5, 0.9))


def test_two_single_voxels_are_their_distance_apart_in_every_measure() -> None:
    a, b = voxels((4, 8, 8), (1, 2, 2)), voxels((4, 8, 8), (2, 5, 6))
    found = surface_distances(a, b, (10.0, 2.0, 1.0))
    expected = math.sqrt(10**2 + 6**2 + 4**2)
    assert found.hd95_pooled == pytest.approx(expected, rel=1e-6)
    assert found.hd95_max == pytest.approx(expected, rel=1e-6)
    assert found.assd == pytest.approx(expected, rel=1e-6)
    assert found.nsd(12.0) == 0.0
    assert found.nsd(13.0) == 1.0


def test_pooled_and_directed_percentiles_differ_as_computed_by_hand() -> None:
    # Prediction: voxels 0 and 10 of a line; truth: voxel 0. To truth: 0, 10; to prediction: 0.
    line = (1, 1, 11)
    found = surface_distances(voxels(line, (0, 0, 0), (0, 0, 10)), voxels(line, (0, 0, 0)), UNIT)
    assert sorted(found.to_truth.tolist()) == [0.0, 10.0]
    assert found.to_prediction.tolist() == [0.0]
    assert found.hd95_max == pytest.approx(9.5)  # 95 % of the way from 0 to 10
    assert found.hd95_pooled == pytest.approx(9.0)  # of 0, 0, 10: position 1.9
    assert found.assd == pytest.approx(10 / 3)
    assert found.asd == pytest.approx(5.0)
    assert found.nsd(1.0) == pytest.approx(2 / 3)


def test_a_surface_exactly_at_the_tolerance_counts_as_near() -> None:
    for step in (0.1, 0.7, 1.3, 1.5625):
        a, b = voxels((1, 1, 9), (0, 0, 1)), voxels((1, 1, 9), (0, 0, 4))
        assert surface_distances(a, b, (1.0, 1.0, step)).nsd(3 * step) == 1.0


def test_equal_masks_have_distance_zero_also_where_they_touch_the_border() -> None:
    full = np.ones((3, 4, 5), dtype=bool)
    found = surface_distances(full, full, (5.0, 1.0, 1.0))
    assert (found.hd95_pooled, found.hd95_max, found.assd, found.nsd(0.5)) == (0, 0, 0, 1)
    # Only the one inner slice with its 2 x 3 inner voxels is no surface.
    assert found.to_truth.size == 60 - 6


def test_the_surface_is_the_mask_without_its_erosion() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = np.pad(random_mask(generator, (5, 9, 7)), 1)
        assert np.array_equal(surface(mask), mask & ~binary_erosion(mask))


def test_cropping_keeps_one_background_voxel_around_both_masks() -> None:
    a, b = voxels((9, 9, 9), (2, 3, 4)), voxels((9, 9, 9), (4, 3, 8))
    cropped_a, cropped_b = crop_to_joint_box(a, b)
    assert cropped_a.shape == (5, 3, 7)
    assert cropped_a[1, 1, 1]
    assert cropped_b[3, 1, 5]
    assert cropped_a.sum() == cropped_b.sum() == 1


def test_two_empty_masks_crop_to_background() -> None:
    empty = np.zeros((4, 5, 6), dtype=bool)
    a, b = crop_to_joint_box(empty, empty)
    assert a.shape == b.shape == (3, 3, 3)
    assert not a.any()


def test_an_empty_mask_and_unlike_shapes_are_refused() -> None:
    one = voxels((2, 2, 2), (0, 0, 0))
    with pytest.raises(InternalError, match="not empty"):
        surface_distances(one, np.zeros((2, 2, 2), dtype=bool), UNIT)
    with pytest.raises(InternalError, match="shape"):
        surface_distances(one, voxels((2, 2, 3), (0, 0, 0)), UNIT)


def test_the_diagonal_exceeds_every_distance_in_the_image() -> None:
    shape, spacing = (3, 4, 5), (10.0, 2.0, 1.0)
    corners = voxels(shape, (0, 0, 0)), voxels(shape, (2, 3, 4))
    longest = surface_distances(*corners, spacing).hd95_pooled
    assert image_diagonal(shape, spacing) == pytest.approx(math.sqrt(30**2 + 8**2 + 5**2))
    assert longest < image_diagonal(shape, spacing)


@pytest.mark.parametrize("seed", range(8))
def test_distances_agree_with_medpy_on_anisotropic_masks(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (1 + seed, 21, 17)
    a, b = random_mask(generator, shape), random_mask(generator, shape)
    s, h, w = generator.uniform(0.4, 9.0, size=3).tolist()
    found = surface_distances(a, b, (s, h, w))
    assert found.hd95_pooled == pytest.approx(binary.hd95(a, b, (s, h, w)), rel=1e-6)
    assert found.assd == pytest.approx(binary.assd(a, b, (s, h, w)), rel=1e-6)
    assert found.asd == pytest.approx(binary.asd(a, b, (s, h, w)), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_distances_agree_with_monai_on_anisotropic_masks(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.metrics import (
            compute_average_surface_distance,
            compute_hausdorff_distance,
            compute_surface_dice,
        )

        generator = np.random.default_rng(100 + seed)
        a, b = (random_mask(generator, (6, 19, 23)) for _ in range(2))
        s, h, w = generator.uniform(0.4, 9.0, size=3).tolist()
        found = surface_distances(a, b, (s, h, w))
        x, y = (torch.from_numpy(m[None, None].astype(np.float32)) for m in (a, b))
        hd95 = compute_hausdorff_distance(x, y, True, percentile=95, spacing=(s, h, w))
        assd = compute_average_surface_distance(x, y, True, symmetric=True, spacing=(s, h, w))
        nsd = compute_surface_dice(x, y, [2.0], True, spacing=(s, h, w))
    # MONAI works in float32 throughout.
    assert found.hd95_max == pytest.approx(float(hd95), rel=1e-6)
    assert found.assd == pytest.approx(float(assd), rel=1e-6)
    assert found.nsd(2.0) == pytest.approx(float(nsd), abs=1e-6)
