"""Grids, axes and distances, by hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest

from sssflow.errors import DataError
from sssflow.volume.geometry import (
    affine_of,
    check_affine,
    grid_from_affine,
    grid_without_spacing,
    largest_corner_distance_mm,
    to_packed_axes,
    to_source_axes,
    voxel_volume_mm3,
)

AFFINE = np.array([[0.0, -2.0, 0.0, 5.0], [3.0, 0.0, 0.0, 6.0], [0.0, 0.0, 8.0, 7.0], [0, 0, 0, 1]])


def test_spacing_and_shape_follow_the_packed_axes() -> None:
    grid = grid_from_affine((10, 20, 30), AFFINE)
    assert grid.shape_shw == (30, 20, 10)
    assert grid.spacing_shw_mm == (8.0, 2.0, 3.0)


def test_spacing_of_an_oblique_axis_is_the_length_of_its_column() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 0] = (3.0, 4.0, 0.0)
    assert grid_from_affine((2, 2, 2), affine).spacing_shw_mm == (1.0, 1.0, 5.0)


def test_the_volume_of_a_voxel_is_that_of_its_body_also_where_the_gantry_was_tilted() -> None:
    affine = np.diag([-0.5, 0.5, 5.0, 1.0])
    assert voxel_volume_mm3(grid_from_affine((2, 2, 2), affine)) == pytest.approx(1.25)
    affine[1, 2] = 5.0 * np.tan(0.35)  # shears slices over each other, which are 5 mm apart
    tilted = grid_from_affine((2, 2, 2), affine)
    assert tilted.spacing_shw_mm[0] == pytest.approx(5.0 / np.cos(0.35))
    assert voxel_volume_mm3(tilted) == pytest.approx(1.25)


def test_the_affine_is_kept_bit_by_bit() -> None:
    affine = AFFINE.copy()
    affine[0, 3] = 0.1 + 0.2
    assert np.array_equal(affine_of(grid_from_affine((2, 3, 4), affine)), affine)


def test_a_file_without_geometry_gives_a_grid_that_says_so() -> None:
    grid = grid_without_spacing((4, 6, 5))
    assert not grid.spacing_known
    assert grid.shape_shw == (4, 6, 5)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_going_to_packed_axes_and_back_gives_the_same_array(axes: tuple[int, int, int]) -> None:
    source = np.arange(24).reshape(2, 3, 4)
    packed = to_packed_axes(source, axes)
    grid = grid_from_affine((2, 3, 4), np.eye(4), axes=axes)
    assert packed.shape == grid.shape_shw
    assert np.array_equal(to_source_axes(packed, grid), source)


def test_an_array_of_another_shape_is_refused_on_its_way_back() -> None:
    with pytest.raises(DataError, match="does not fit its grid"):
        to_source_axes(np.zeros((3, 3, 3)), grid_without_spacing((3, 3, 4)))


def test_a_shift_of_the_origin_moves_every_corner_by_its_length() -> None:
    moved = AFFINE.copy()
    moved[:3, 3] += (3.0, 0.0, 4.0)
    first, second = (grid_from_affine((10, 20, 30), a) for a in (AFFINE, moved))
    assert largest_corner_distance_mm(first, second) == 5.0


def test_another_spacing_shows_at_the_far_corner_only() -> None:
    wider = AFFINE.copy()
    wider[2, 2] = 8.5
    first, second = (grid_from_affine((10, 20, 31), a) for a in (AFFINE, wider))
    assert largest_corner_distance_mm(first, second) == pytest.approx(0.5 * 30)


def test_a_mirrored_axis_lies_a_whole_field_of_view_away() -> None:
    first, second = (grid_from_affine((11, 1, 1), np.diag([x, 1.0, 1.0, 1.0])) for x in (1.0, -1.0))
    assert largest_corner_distance_mm(first, second) == 20.0


@pytest.mark.parametrize(
    "change",
    [((0, 0), np.nan), ((1, 3), np.inf), ((2, 2), 0.0), ((2, 2), 1e-9), ((2, 2), 1e6)],
)
def test_an_affine_that_places_no_voxels_is_refused(
    change: tuple[tuple[int, int], float],
) -> None:
    affine = np.eye(4)
    affine[change[0]] = change[1]
    with pytest.raises(DataError) as caught:
        check_affine(affine, "scan.nii")
    assert caught.value.where == "scan.nii"


def test_axes_in_one_plane_are_refused_and_a_tilted_gantry_is_not() -> None:
    flat = np.eye(4)
    flat[:3, 2] = (1.0, 1.0, 0.0)
    with pytest.raises(DataError, match="not invertible"):
        check_affine(flat, "flat")
    tilted = np.eye(4)
    tilted[1, 2] = 0.5
    check_affine(tilted, "tilted")
