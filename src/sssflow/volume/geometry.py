"""Grids: where voxels are, from the file's own axes to the packed ones and back.

Axis letters of a packed array: s slices, h rows, w columns. "Source axes" are those of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.dataset import Affine, Grid
from sssflow.errors import DataError

Array = NDArray[np.generic]
FloatArray = NDArray[np.float64]

# nibabel ships type marks, yet this function has none.
_AXIS_CODES: Any = nib.orientations.aff2axcodes
_SMALLEST_SPACING_MM = 1e-6
_LARGEST_SPACING_MM = 1e4
_SMALLEST_SINE = 1e-3
_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Volume:
    """One image or label in memory, packed axes, with the grid that leads back to its file.

    Attributes:
        array_shw: The voxels.
        grid: Where they are.
        sform_set_aside: Whether the sform of the NIfTI file contradicts the voxel size of its
            header, so that the grid is the one of its qform.
    """

    array_shw: Array
    grid: Grid
    sform_set_aside: bool = False


def check_affine(affine: FloatArray, where: object) -> None:
    """Refuse an affine that places no voxels.

    Accepted are finite, invertible ones with spacings of 1e-6 to 1e4 mm, sheared ones (a tilted
    gantry) included.

    Raises:
        DataError: NaN or infinity, a zero or absurd spacing, or axes that lie in one plane.
    """
    action = "Export the scan again with its orientation, or correct its header."
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise DataError(
            "The affine is not finite.",
            where=where,
            expected="a 4 x 4 matrix of finite numbers",
            found=affine.tolist(),
            action=action,
        )
    spacing_mm = spacing_along_source_mm(affine)
    volume_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    sound = _SMALLEST_SPACING_MM <= spacing_mm.min() and spacing_mm.max() <= _LARGEST_SPACING_MM
    if not sound or volume_mm3 < _SMALLEST_SINE * float(spacing_mm.prod()):
        raise DataError(
            "The affine is not invertible.",
            where=where,
            expected="three independent axes with a spacing above zero",
            found=f"spacing {spacing_mm.tolist()} mm, determinant {volume_mm3:g}",
            action=action,
        )


def spacing_along_source_mm(affine: FloatArray) -> FloatArray:
    """Voxel size along each axis of the file: lengths of the affine's columns."""
    lengths: FloatArray = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return lengths


def voxel_volume_mm3(grid: Grid) -> float:
    """Volume of a voxel; below the product of the spacing where the axes are sheared."""
    return abs(float(np.linalg.det(affine_of(grid)[:3, :3])))


def gives_voxel_size(affine: FloatArray, size_mm: FloatArray) -> bool:
    """Whether an affine fits to a voxel size that is stored beside it, to one percent.

    Along a sheared axis (a tilted gantry) writers store the length of the column or the distance
    of the planes: both fit, and all between them.
    """
    lengths = spacing_along_source_mm(affine)
    distances = 1 / np.sqrt((np.linalg.inv(affine[:3, :3]) ** 2).sum(axis=1))
    small_enough = size_mm <= lengths * (1 + _SIZE_TOLERANCE)
    return bool((small_enough & (size_mm >= distances * (1 - _SIZE_TOLERANCE))).all())


def grid_from_affine(
    source_shape: tuple[int, int, int],
    affine: FloatArray,
    *,
    axes: tuple[int, int, int] = (2, 1, 0),
) -> Grid:
    """The grid of `source_array.transpose(axes)`; the affine is kept bit by bit."""
    spacing_mm = spacing_along_source_mm(affine)
    return Grid(
        shape_shw=_pick(source_shape, axes),
        spacing_shw_mm=(
            float(spacing_mm[axes[0]]),
            float(spacing_mm[axes[1]]),
            float(spacing_mm[axes[2]]),
        ),
        affine_ras=_as_affine(affine),
        axes=axes,
    )


def grid_without_spacing(
    source_shape: tuple[int, int, int], *, axes: tuple[int, int, int] = (0, 1, 2)
) -> Grid:
    """The grid of a file that stores no geometry: unit voxels, marked as unknown."""
    return Grid(
        shape_shw=_pick(source_shape, axes),
        spacing_shw_mm=(1.0, 1.0, 1.0),
        affine_ras=_as_affine(np.eye(4)),
        axes=axes,
        spacing_known=False,
    )


def affine_of(grid: Grid) -> FloatArray:
    """The affine (source axes to RAS mm) as a 4 x 4 array."""
    return np.array(grid.affine_ras, dtype=np.float64)


def axis_letters(grid: Grid) -> str:
    """Where the file's axes point, nearest direction of the body each: RAS, LPS, PIR ..."""
    letters: tuple[str, ...] = _AXIS_CODES(affine_of(grid))
    return "".join(letters)


def to_packed_axes(source_array: Array, axes: tuple[int, int, int]) -> Array:
    """From the file's axes to (s, h, w), contiguous."""
    return np.ascontiguousarray(source_array.transpose(axes))


def to_source_axes(array_shw: Array, grid: Grid) -> Array:
    """From (s, h, w) back to the file's axes; undoes `to_packed_axes`.

    Raises:
        DataError: The array does not have the grid's shape.
    """
    if array_shw.shape != grid.shape_shw:
        raise DataError(
            "The array does not fit its grid.", expected=grid.shape_shw, found=array_shw.shape
        )
    return array_shw.transpose(np.argsort(grid.axes))


def largest_corner_distance_mm(first: Grid, second: Grid) -> float:
    """How far the same voxel lies apart on two grids of equal shape and axes, at worst.

    The difference of two affine maps is affine, so its largest value over the volume is at one of
    the eight corner voxels.
    """
    ends = np.array(first.shape_shw)[np.argsort(first.axes)] - 1
    corners = np.array(np.meshgrid(*[[0, end] for end in ends], indexing="ij")).reshape(3, 8)
    homogeneous = np.vstack([corners, np.ones((1, 8))])
    apart_mm = ((affine_of(first) - affine_of(second)) @ homogeneous)[:3]
    return float(np.sqrt((apart_mm**2).sum(axis=0)).max())


def _pick(values: tuple[int, int, int], axes: tuple[int, int, int]) -> tuple[int, int, int]:
    return int(values[axes[0]]), int(values[axes[1]]), int(values[axes[2]])


def _as_affine(affine: FloatArray) -> Affine:
    rows = [tuple(float(value) for value in row) for row in affine]
    return rows[0], rows[1], rows[2], rows[3]  # type: ignore[return-value]
