"""The 8-bit store: exact at its ends, its error told, never for CT."""

from __future__ import annotations

import numpy as np
import pytest

from sssflow.contracts.dataset import Modality
from sssflow.contracts.model import IntensityRule
from sssflow.errors import UsageError
from sssflow.ingest.config import StoreConfig
from sssflow.ingest.quantise import quantise
from sssflow.volume.intensity import normalise, require_units

STORE = StoreConfig(kind="uint8")


def test_the_whole_range_is_kept_within_half_a_step() -> None:
    volume = np.random.default_rng(0).normal(100, 30, (3, 8, 8)).astype(np.float32)
    steps, about = quantise(volume, STORE, Modality.MR, where="a")
    assert (steps.min(), steps.max()) == (0, 255)
    assert (about.low, about.high) == (float(volume.min()), float(volume.max()))
    assert about.clipped_share == 0
    rule = IntensityRule(kind="minmax")
    error = np.abs(normalise(steps, rule) - normalise(volume, rule))
    assert error.max() <= 0.5 / 255 + 1e-6
    assert about.rms_error == pytest.approx(float(np.sqrt((error**2).mean())), rel=1e-3)


def test_a_window_clips_what_lies_beyond_and_says_how_much() -> None:
    volume = np.arange(100, dtype=np.float32).reshape(1, 10, 10)
    store = StoreConfig(kind="uint8", low_pct=10, high_pct=90)
    steps, about = quantise(volume, store, Modality.MR, where="a")
    assert (about.low, about.high) == (pytest.approx(9.9), pytest.approx(89.1))
    assert about.clipped_share == pytest.approx(0.2)
    assert steps[0, 0, :10].max() == 0
    assert steps[0, 9].min() == 255


def test_nothing_is_called_clipped_where_the_window_is_the_whole_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        volume = (rng.random((1, 8, 8)) * rng.uniform(1, 5000)).astype(np.float32)
        assert quantise(volume, STORE, Modality.MR, where="a")[1].clipped_share == 0


@pytest.mark.parametrize(
    ("rule", "same"),
    [
        (IntensityRule(kind="minmax"), False),
        (IntensityRule(kind="zscore"), False),
        (IntensityRule(kind="percentile", low_pct=0.1, high_pct=99.9), False),
        (IntensityRule(kind="percentile", low_pct=0.5, high_pct=99.5), True),
        (IntensityRule(kind="percentile", low_pct=1, high_pct=98), True),
    ],
)
def test_a_cut_image_serves_the_rules_alone_that_read_it_as_the_scan(
    rule: IntensityRule, same: bool
) -> None:
    volume = np.random.default_rng(0).normal(300, 60, (6, 64, 64)).astype(np.float32)
    volume[2, :6, :6] = 4000  # a coil too near: 0.15 % of the voxels
    store = StoreConfig(kind="uint8", low_pct=0.5, high_pct=99.5)
    steps, about = quantise(volume, store, Modality.MR, where="a")
    apart = np.abs(normalise(steps, rule) - normalise(volume, rule))
    assert bool(apart.max() < 0.05) is same
    if same:
        require_units(rule, about, "a")
    else:
        with pytest.raises(UsageError, match="low_pct=0 and"):
            require_units(rule, about, "a")


def test_a_constant_volume_becomes_zero_and_ct_is_refused() -> None:
    constant = np.full((1, 2, 2), 7.0, np.float32)
    steps, about = quantise(constant, STORE, Modality.MR, where="a")
    assert not steps.any()
    assert about.rms_error == 0
    with pytest.raises(UsageError, match="Hounsfield"):
        quantise(constant, STORE, Modality.CT, where="a")
