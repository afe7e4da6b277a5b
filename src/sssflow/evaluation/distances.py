"""Distances between the surfaces of two masks, in the unit of the given spacing.

A surface voxel is a mask voxel with at least one of its six face neighbours outside the mask; what
lies outside the array counts as outside the mask. This is the rule of medpy and MONAI.
Axis letters: s slices, h rows, w columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import edt
import numpy as np
from numpy.typing import NDArray

from sssflow.errors import InternalError

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of every surface voxel of one mask to the nearest one of the other.

    Attributes:
        to_truth: One value per surface voxel of the prediction, float64, at least one value.
        to_prediction: One value per surface voxel of the truth, likewise.
    """

    to_truth: NDArray[np.float64]
    to_prediction: NDArray[np.float64]

    @property
    def hd95_pooled(self) -> float:
        """95th percentile of both directions pooled (the definition of medpy)."""
        return float(np.percentile(np.concatenate([self.to_truth, self.to_prediction]), 95))

    @property
    def hd95_max(self) -> float:
        """Larger one of the two directed 95th percentiles (the definition of MONAI)."""
        directed = (np.percentile(self.to_truth, 95), np.percentile(self.to_prediction, 95))
        return float(max(directed))

    @property
    def assd(self) -> float:
        """Average symmetric surface distance: mean over both directions pooled (medpy, MONAI)."""
        return float(np.concatenate([self.to_truth, self.to_prediction]).mean())

    @property
    def asd(self) -> float:
        """Mean distance from the prediction's surface to the truth's, one direction only."""
        return float(self.to_truth.mean())

    def nsd(self, tolerance: float) -> float:
        """Normalised surface distance: share of both surfaces no further apart than `tolerance`.

        Counts surface voxels, not surface area (as MONAI without sub-voxels).
        """
        # The transform works in float32: a surface exactly at the tolerance must count as near.
        limit = tolerance * (1 + 1e-6)
        near = np.count_nonzero(self.to_truth <= limit)
        near += np.count_nonzero(self.to_prediction <= limit)
        return float(near / (self.to_truth.size + self.to_prediction.size))


def surface_distances(
    prediction_shw: Mask, truth_shw: Mask, spacing_shw: Spacing
) -> SurfaceDistances:
    """Distances between the surfaces of two non-empty masks of one shape.

    Both are cropped to the joint bounding box first, which changes no distance.

    Raises:
        InternalError: A mask is empty or the shapes differ: the caller decides those.
    """
    prediction, truth = crop_to_joint_box(prediction_shw, truth_shw)
    surface_p, surface_t = surface(prediction), surface(truth)
    if not surface_p.any() or not surface_t.any():
        raise InternalError("Surface distances need two masks that are not empty.")
    return SurfaceDistances(
        to_truth=_distance_to(surface_t, spacing_shw)[surface_p],
        to_prediction=_distance_to(surface_p, spacing_shw)[surface_t],
    )


def crop_to_joint_box(a_shw: Mask, b_shw: Mask) -> tuple[Mask, Mask]:
    """Both masks on the smallest box that holds them, plus one voxel of background around.

    Two empty masks give two arrays of one background voxel per axis and its margin (3, 3, 3).

    Raises:
        InternalError: The shapes differ.
    """
    if a_shw.shape != b_shw.shape:
        raise InternalError(
            "Two masks of one case differ in shape.", expected=a_shw.shape, found=b_shw.shape
        )
    union = a_shw | b_shw
    box = []
    for axis in range(union.ndim):
        others = tuple(i for i in range(union.ndim) if i != axis)
        filled = np.flatnonzero(union.any(axis=others))
        box.append(slice(filled[0], filled[-1] + 1) if filled.size else slice(0, 1))
    index = tuple(box)
    return np.pad(a_shw[index], 1), np.pad(b_shw[index], 1)


def surface(mask_shw: Mask) -> Mask:
    """Surface voxels of a mask whose outermost layer is background (any number of axes)."""
    inside = mask_shw.copy()
    for axis in range(mask_shw.ndim):
        for step in (1, -1):
            # np.roll wraps around, but the outermost layer is background on both sides.
            inside &= np.roll(mask_shw, step, axis=axis)
    return mask_shw & ~inside


def image_diagonal(shape_shw: tuple[int, int, int], spacing_shw: Spacing) -> float:
    """Length of the diagonal of the whole image: more than any distance inside it can be."""
    extent = np.asarray(shape_shw, dtype=np.float64) * np.asarray(spacing_shw, dtype=np.float64)
    return float(np.sqrt((extent**2).sum()))


def _distance_to(target_shw: Mask, spacing_shw: Spacing) -> NDArray[np.float64]:
    distance = edt.edt(
        np.ascontiguousarray(~target_shw), anisotropy=spacing_shw, black_border=False, parallel=1
    )
    return np.asarray(distance, dtype=np.float64)
