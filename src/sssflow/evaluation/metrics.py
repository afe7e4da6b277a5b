"""Metrics of one class of one case, under two named conventions side by side.

strict
    Distances in mm (in voxels where the source stores no spacing). Truth and prediction both
    empty: overlap and distances are None, left out of the means and counted; the volume
    difference is what it is, 0 ml. Only one of them empty (a
    missed or a hallucinated structure): overlap scores are 0, distances are the diagonal of the
    whole image, so that no miss beats a hit.
ssl4mis
    What published ACDC tables were computed with: voxels, spacing ignored, HD95 pooled, ASD from
    the prediction to the truth. An empty prediction scores Dice 0, HD95 0 and ASD 0, also where
    the truth is empty: this flatters. Where only the truth is empty the published code stops with
    an error; here Dice is 0 and the distances are None.

Values for empty masks (D diagonal of the image):

    prediction  truth   presence      strict overlap  strict distances  ssl4mis dice  hd95, asd
    filled      filled  both          as computed     as computed       as computed   as computed
    empty       filled  missed        0               D                 0             0
    filled      empty   hallucinated  0               D                 0             None
    empty       empty   absent        None            None              0             0

Axis letters: s slices, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sssflow.errors import InternalError
from sssflow.evaluation.distances import (
    Mask,
    Spacing,
    SurfaceDistances,
    image_diagonal,
    surface_distances,
)

Unit = Literal["mm", "voxel"]
Scores = dict[str, float | None]

ISOTROPIC: Spacing = (1.0, 1.0, 1.0)

CONVENTIONS = {
    "strict": (
        "Distances in mm, or in voxels where the source stores no spacing. A missed or "
        "hallucinated structure scores 0 for overlap and the diagonal of the image for distances. "
        "Truth and prediction both empty: left out of the means and counted."
    ),
    "ssl4mis": (
        "As in published ACDC tables: voxels, spacing ignored. An empty prediction scores Dice 0, "
        "HD95 0 and ASD 0, which flatters the distances of a model that misses structures. "
        "Compare these figures with published ones only, never with the strict ones."
    ),
    "hd95_pooled": "95th percentile of the surface distances of both directions pooled (medpy).",
    "hd95_max": "Larger of the two directed 95th percentiles (MONAI).",
    "assd": "Mean surface distance over both directions pooled (medpy, MONAI).",
    "asd": "Mean distance from the prediction's surface to the truth's (one direction).",
    "nsd": "Share of the surface voxels of both masks no further apart than the tolerance.",
    "volume_difference": "Prediction minus truth; 1 ml = 1000 cubic mm. 0 where both are empty, "
    "and counted in the mean.",
    "mean": "Mean over cases per class, then over classes.",
}


class Presence(StrEnum):
    """Which of truth and prediction hold the class."""

    BOTH = "both"
    MISSED = "missed"
    HALLUCINATED = "hallucinated"
    ABSENT = "absent"


@dataclass(frozen=True)
class ClassMeasures:
    """What was measured for one class of one case.

    Attributes:
        presence: Which row of the table of empty masks applies.
        strict: Metric name with its unit to value; None: left out of means.
        ssl4mis: Likewise, in voxels.
        true_positive: Voxel counts against the truth; likewise the next three.
        false_positive: …
        false_negative: …
        true_negative: …
    """

    presence: Presence
    strict: Scores
    ssl4mis: Scores
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def truth_voxels(self) -> int:
        """Size of the class in the truth."""
        return self.true_positive + self.false_negative

    @property
    def prediction_voxels(self) -> int:
        """Size of the class in the prediction."""
        return self.true_positive + self.false_positive


def strict_names(unit: Unit, nsd_tolerances: Sequence[float]) -> tuple[str, ...]:
    """Names of the strict scores in the order of tables and columns."""
    volume = ("volume_difference_ml", "volume_difference_abs_ml") if unit == "mm" else ()
    distances = (f"hd95_pooled_{unit}", f"hd95_max_{unit}", f"assd_{unit}")
    return ("dice", "iou", *distances, *(nsd_name(t, unit) for t in nsd_tolerances), *volume)


def nsd_name(tolerance: float, unit: Unit) -> str:
    """`nsd_2mm` for a tolerance of 2.0 mm."""
    return f"nsd_{tolerance:g}{unit}"


SSL4MIS_NAMES = ("dice", "jaccard", "hd95_voxel", "asd_voxel")


def measure_class(
    prediction_shw: Mask,
    truth_shw: Mask,
    *,
    spacing_shw_mm: Spacing | None,
    nsd_tolerances: Sequence[float],
    voxel_mm3: float | None = None,
) -> ClassMeasures:
    """All scores of one class of one case.

    Args:
        prediction_shw: Where the prediction is this class.
        truth_shw: Where the truth is; same shape.
        spacing_shw_mm: Voxel size; None: not known, distances are in voxels and volumes in ml
            do not exist.
        nsd_tolerances: In mm, or in voxels where the spacing is not known.
        voxel_mm3: Volume of a voxel; None: the product of the spacing, which is too much where
            the axes are sheared (a tilted gantry).

    Raises:
        InternalError: The shapes differ.
    """
    tp, fp, fn, tn = _counts(prediction_shw, truth_shw)
    presence = _presence(tp + fp, tp + fn)
    unit: Unit = "voxel" if spacing_shw_mm is None else "mm"
    spacing = spacing_shw_mm or ISOTROPIC
    strict: Scores = {name: None for name in strict_names(unit, nsd_tolerances)}
    ssl4mis: Scores = {name: 0.0 for name in SSL4MIS_NAMES}
    if presence is Presence.BOTH:
        found = surface_distances(prediction_shw, truth_shw, spacing)
        in_voxels = (
            found
            if spacing == ISOTROPIC
            else surface_distances(prediction_shw, truth_shw, ISOTROPIC)
        )
        strict |= _overlap(tp, fp, fn) | _strict_distances(found, unit, nsd_tolerances)
        ssl4mis = _ssl4mis_scores(tp, fp, fn, in_voxels)
    elif presence in (Presence.MISSED, Presence.HALLUCINATED):
        strict |= _penalty(prediction_shw.shape, spacing, unit, nsd_tolerances)
    if presence is Presence.HALLUCINATED:
        ssl4mis |= {"hd95_voxel": None, "asd_voxel": None}
    if spacing_shw_mm is not None:
        volume_mm3 = float(np.prod(spacing_shw_mm)) if voxel_mm3 is None else voxel_mm3
        difference_ml = (fp - fn) * volume_mm3 / 1000.0
        strict |= {
            "volume_difference_ml": difference_ml,
            "volume_difference_abs_ml": abs(difference_ml),
        }
    return ClassMeasures(presence, strict, ssl4mis, tp, fp, fn, tn)


def measure_case(
    prediction_shw: NDArray[np.integer],
    truth_shw: NDArray[np.integer],
    *,
    class_count: int,
    spacing_shw_mm: Spacing | None,
    nsd_tolerances: Sequence[float],
    voxel_mm3: float | None = None,
) -> dict[int, ClassMeasures]:
    """`measure_class` for every class but the background of two label arrays of one shape."""
    return {
        index: measure_class(
            prediction_shw == index,
            truth_shw == index,
            spacing_shw_mm=spacing_shw_mm,
            nsd_tolerances=nsd_tolerances,
            voxel_mm3=voxel_mm3,
        )
        for index in range(1, class_count)
    }


def _counts(prediction: Mask, truth: Mask) -> tuple[int, int, int, int]:
    if prediction.shape != truth.shape:
        raise InternalError(
            "Prediction and truth of a case differ in shape.",
            expected=truth.shape,
            found=prediction.shape,
        )
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return tp, fp, fn, int(truth.size) - tp - fp - fn


def _presence(prediction_voxels: int, truth_voxels: int) -> Presence:
    if prediction_voxels and truth_voxels:
        return Presence.BOTH
    if truth_voxels:
        return Presence.MISSED
    return Presence.HALLUCINATED if prediction_voxels else Presence.ABSENT


def _overlap(tp: int, fp: int, fn: int) -> Scores:
    return {"dice": 2 * tp / (2 * tp + fp + fn), "iou": tp / (tp + fp + fn)}


def _strict_distances(found: SurfaceDistances, unit: Unit, tolerances: Sequence[float]) -> Scores:
    return {
        f"hd95_pooled_{unit}": found.hd95_pooled,
        f"hd95_max_{unit}": found.hd95_max,
        f"assd_{unit}": found.assd,
        **{nsd_name(tolerance, unit): found.nsd(tolerance) for tolerance in tolerances},
    }


def _penalty(
    shape: tuple[int, ...], spacing: Spacing, unit: Unit, tolerances: Sequence[float]
) -> Scores:
    s, h, w = shape
    diagonal = image_diagonal((s, h, w), spacing)
    return {
        "dice": 0.0,
        "iou": 0.0,
        f"hd95_pooled_{unit}": diagonal,
        f"hd95_max_{unit}": diagonal,
        f"assd_{unit}": diagonal,
        **{nsd_name(tolerance, unit): 0.0 for tolerance in tolerances},
    }


def _ssl4mis_scores(tp: int, fp: int, fn: int, in_voxels: SurfaceDistances) -> Scores:
    overlap = _overlap(tp, fp, fn)
    return {
        "dice": overlap["dice"],
        "jaccard": overlap["iou"],
        "hd95_voxel": in_voxels.hd95_pooled,
        "asd_voxel": in_voxels.asd,
    }
