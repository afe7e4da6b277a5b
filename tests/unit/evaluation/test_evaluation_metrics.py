"""Scores of one class: the stated table of empty masks, hand-computed cases, references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from medpy.metric import binary
from scipy.ndimage import gaussian_filter

from sssflow.errors import InternalError
from sssflow.evaluation.metrics import (
    SSL4MIS_NAMES,
    Presence,
    measure_case,
    measure_class,
    strict_names,
)

SPACING = (10.0, 1.5, 1.5)
SHAPE = (3, 8, 8)


def block(*, filled: bool) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1, 2:5, 2:5] = filled
    return mask


def test_a_shifted_block_gives_the_scores_computed_by_hand() -> None:
    truth = block(filled=True)
    prediction = np.roll(truth, 1, axis=2)
    found = measure_class(prediction, truth, spacing_shw_mm=SPACING, nsd_tolerances=(1.0, 2.0))
    assert (found.true_positive, found.false_positive, found.false_negative) == (6, 3, 3)
    assert found.true_negative == 192 - 12
    assert found.strict["dice"] == pytest.approx(2 / 3)
    assert found.strict["iou"] == pytest.approx(1 / 2)
    # Each direction: six voxels at 0 and three at one column = 1.5 mm.
    assert found.strict["hd95_pooled_mm"] == pytest.approx(1.5)
    assert found.strict["hd95_max_mm"] == pytest.approx(1.5)
    assert found.strict["assd_mm"] == pytest.approx(0.5)
    assert found.strict["nsd_1mm"] == pytest.approx(2 / 3)
    assert found.strict["nsd_2mm"] == pytest.approx(1.0)
    assert found.strict["volume_difference_ml"] == 0.0
    assert found.ssl4mis["hd95_voxel"] == pytest.approx(1.0)
    assert found.ssl4mis["asd_voxel"] == pytest.approx(1 / 3)
    assert found.ssl4mis["jaccard"] == pytest.approx(1 / 2)


def test_the_volume_difference_is_prediction_minus_truth_in_millilitres() -> None:
    truth = block(filled=True)
    prediction = truth.copy()
    prediction[1, 2, 2:5] = False  # three voxels of 22.5 cubic mm less
    found = measure_class(prediction, truth, spacing_shw_mm=SPACING, nsd_tolerances=(2.0,))
    assert found.strict["volume_difference_ml"] == pytest.approx(-0.0675)
    assert found.strict["volume_difference_abs_ml"] == pytest.approx(0.0675)
    sheared = measure_case(
        prediction.astype(np.uint8),
        truth.astype(np.uint8),
        class_count=2,
        spacing_shw_mm=SPACING,
        nsd_tolerances=(2.0,),
        voxel_mm3=20.0,
    )
    assert sheared[1].strict["volume_difference_ml"] == pytest.approx(-0.06)


DIAGONAL = math.sqrt(30.0**2 + 12.0**2 + 12.0**2)


@pytest.mark.parametrize(
    ("prediction", "truth", "presence", "overlap", "distance", "ssl_dice", "ssl_distance"),
    [
        (True, True, Presence.BOTH, 1.0, 0.0, 1.0, 0.0),
        (False, True, Presence.MISSED, 0.0, DIAGONAL, 0.0, 0.0),
        (True, False, Presence.HALLUCINATED, 0.0, DIAGONAL, 0.0, None),
        (False, False, Presence.ABSENT, None, None, 0.0, 0.0),
    ],
)
def test_empty_masks_score_what_the_table_states(
    prediction: bool,
    truth: bool,
    presence: Presence,
    overlap: float | None,
    distance: float | None,
    ssl_dice: float,
    ssl_distance: float | None,
) -> None:
    found = measure_class(
        block(filled=prediction),
        block(filled=truth),
        spacing_shw_mm=SPACING,
        nsd_tolerances=(2.0,),
    )
    assert found.presence is presence
    for name in ("dice", "iou", "nsd_2mm"):
        assert found.strict[name] == overlap, name
    for name in ("hd95_pooled_mm", "hd95_max_mm", "assd_mm"):
        if distance is None:
            assert found.strict[name] is None
        else:
            assert found.strict[name] == pytest.approx(distance), name
    assert found.ssl4mis["dice"] == found.ssl4mis["jaccard"] == ssl_dice
    assert found.ssl4mis["hd95_voxel"] == found.ssl4mis["asd_voxel"] == ssl_distance
    signed = (int(prediction) - int(truth)) * 9 * 22.5 / 1000
    assert found.strict["volume_difference_ml"] == pytest.approx(signed)


def test_a_miss_never_has_a_better_strict_distance_than_the_worst_hit() -> None:
    truth, worst = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
    truth[0, 0, 0] = worst[2, 7, 7] = True
    missed = np.zeros(SHAPE, dtype=bool)
    scores = [
        measure_class(p, truth, spacing_shw_mm=SPACING, nsd_tolerances=(2.0,)).strict
        for p in (worst, missed)
    ]
    for name in ("hd95_pooled_mm", "hd95_max_mm", "assd_mm"):
        hit, miss = scores[0][name], scores[1][name]
        assert hit is not None
        assert miss is not None
        assert miss > hit


def test_without_spacing_distances_are_in_voxels_and_there_are_no_millilitres() -> None:
    truth = block(filled=True)
    found = measure_class(
        np.roll(truth, 1, axis=2), truth, spacing_shw_mm=None, nsd_tolerances=(2.0,)
    )
    assert tuple(found.strict) == strict_names("voxel", (2.0,))
    assert found.strict["hd95_pooled_voxel"] == pytest.approx(1.0)
    assert found.strict["nsd_2voxel"] == 1.0
    assert not any("ml" in name or "mm" in name for name in found.strict)


@pytest.mark.parametrize("seed", range(6))
def test_the_ssl4mis_scores_are_those_of_medpy_without_spacing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = (gaussian_filter(generator.standard_normal((6, 18, 15)), 1.5) > 0.05 for _ in range(2))
    found = measure_class(a, b, spacing_shw_mm=(8.0, 1.2, 1.4), nsd_tolerances=(2.0,))
    assert tuple(found.ssl4mis) == SSL4MIS_NAMES
    assert found.ssl4mis["dice"] == pytest.approx(binary.dc(a, b), rel=1e-9)
    assert found.ssl4mis["jaccard"] == pytest.approx(binary.jc(a, b), rel=1e-9)
    assert found.ssl4mis["hd95_voxel"] == pytest.approx(binary.hd95(a, b), rel=1e-6)
    assert found.ssl4mis["asd_voxel"] == pytest.approx(binary.asd(a, b), rel=1e-6)


def test_every_class_but_the_background_is_measured() -> None:
    truth = np.zeros(SHAPE, dtype=np.uint8)
    truth[1, 2, 2], truth[1, 4, 4] = 1, 3
    found = measure_case(truth, truth, class_count=4, spacing_shw_mm=SPACING, nsd_tolerances=(2.0,))
    assert sorted(found) == [1, 2, 3]
    assert [found[i].presence for i in (1, 2, 3)] == ["both", "absent", "both"]
    assert [found[i].truth_voxels for i in (1, 2, 3)] == [1, 0, 1]


def test_unlike_shapes_are_a_bug_and_said_so() -> None:
    with pytest.raises(InternalError, match="shape"):
        measure_class(
            np.zeros((1, 2, 2), dtype=bool),
            np.zeros((1, 2, 3), dtype=bool),
            spacing_shw_mm=None,
            nsd_tolerances=(2.0,),
        )


@pytest.mark.parametrize("seed", range(4))
def test_swapping_truth_and_prediction_changes_only_the_sign_of_the_volume(seed: int) -> None:
    generator = np.random.default_rng(50 + seed)
    a, b = (gaussian_filter(generator.standard_normal((5, 12, 14)), 1.2) > 0.1 for _ in range(2))
    there, back = (
        measure_class(x, y, spacing_shw_mm=SPACING, nsd_tolerances=(2.0,)).strict
        for x, y in ((a, b), (b, a))
    )
    for name, value in there.items():
        other = back[name]
        assert value is not None
        assert other is not None
        sign = -1 if name == "volume_difference_ml" else 1
        assert value == pytest.approx(sign * other, rel=1e-6), name


def test_doubling_the_spacing_doubles_distances_and_leaves_overlap() -> None:
    generator = np.random.default_rng(4)
    a, b = (gaussian_filter(generator.standard_normal((5, 12, 14)), 1.2) > 0.1 for _ in range(2))
    once = measure_class(a, b, spacing_shw_mm=SPACING, nsd_tolerances=(2.0,))
    twice = measure_class(a, b, spacing_shw_mm=(20.0, 3.0, 3.0), nsd_tolerances=(4.0,))
    for name in ("hd95_pooled_mm", "hd95_max_mm", "assd_mm"):
        small, large = once.strict[name], twice.strict[name]
        assert small is not None
        assert large == pytest.approx(2 * small, rel=1e-6)
    assert twice.strict["dice"] == once.strict["dice"]
    assert twice.strict["nsd_4mm"] == once.strict["nsd_2mm"]
    assert twice.ssl4mis == once.ssl4mis
