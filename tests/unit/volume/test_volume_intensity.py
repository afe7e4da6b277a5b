"""Intensity rules, by numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from sssflow.contracts.model import IntensityRule
from sssflow.volume.intensity import normalise

RAMP = np.array([[[-10, 0], [10, 30]]], np.int16)


def test_minmax_maps_the_least_to_zero_and_the_most_to_one() -> None:
    found = normalise(RAMP, IntensityRule(kind="minmax"))
    np.testing.assert_allclose(found, [[[0.0, 0.25], [0.5, 1.0]]])
    assert found.dtype == np.float32


def test_zscore_has_the_population_deviation() -> None:
    # Mean 7.5; squared distances 306.25, 56.25, 6.25, 506.25; their mean 218.75.
    found = normalise(RAMP, IntensityRule(kind="zscore"))
    expected = (np.array([[[-10, 0], [10, 30]]]) - 7.5) / 218.75**0.5
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_window_clips_at_both_ends() -> None:
    found = normalise(RAMP, IntensityRule(kind="window", window_low=0, window_high=20))
    np.testing.assert_allclose(found, [[[0.0, 0.0], [0.5, 1.0]]])


def test_percentile_interpolates_between_values_and_clips() -> None:
    volume = np.arange(101, dtype=np.float32).reshape(1, 1, 101)
    found = normalise(volume, IntensityRule(kind="percentile", low_pct=10, high_pct=60))
    np.testing.assert_allclose(found[0, 0, [0, 10, 35, 60, 100]], [0, 0, 0.5, 1, 1], atol=1e-6)


def test_none_keeps_the_values() -> None:
    np.testing.assert_array_equal(normalise(RAMP, IntensityRule(kind="none")), RAMP)


@pytest.mark.parametrize("kind", ["minmax", "percentile", "zscore"])
def test_a_constant_volume_becomes_zero(kind: str) -> None:
    found = normalise(np.full((2, 3, 3), 7, np.uint8), IntensityRule(kind=kind))  # type: ignore[arg-type]
    assert not found.any()


def test_the_input_is_not_changed() -> None:
    volume = np.array([[[1.0, 2.0]]], np.float32)
    for kind in ("minmax", "percentile", "zscore", "window", "none"):
        normalise(volume, IntensityRule(kind=kind))
    np.testing.assert_array_equal(volume, [[[1.0, 2.0]]])


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("window", "window_low", "window_high"), ("percentile", "low_pct", "high_pct")],
)
@pytest.mark.parametrize("top", [40.0, 60.0])  # 60: without width
def test_ends_that_would_make_every_image_one_grey_value_are_refused(
    kind: str, low: str, high: str, top: float
) -> None:
    ends = {low: 60.0, high: top}
    with pytest.raises(ValidationError, match=f"{low} 60 must be below {high} {top:g}"):
        IntensityRule.model_validate({"kind": kind, **ends})
    assert IntensityRule.model_validate({"kind": "minmax", **ends}).kind == "minmax"
    assert IntensityRule.model_validate({"kind": kind, low: 60.0, high: 60.5})
