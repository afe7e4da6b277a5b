"""The 8-bit store: exact at its ends, its error told, never for CT."""

from __future__ import annotations

import numpy as np
import pytest

from sssflow.contracts.dataset import Modality
from sssflow.contracts.model import IntensityRule
from sssflow.errors import UsageError
from sssflow.ingest.config import StoreConfig
from sssflow.ingest.quantise import quantise
from sssflow.volume.intensity import normalise

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


def test_a_constant_volume_becomes_zero_and_ct_is_refused() -> None:
    constant = np.full((1, 2, 2), 7.0, np.float32)
    steps, about = quantise(constant, STORE, Modality.MR, where="a")
    assert not steps.any()
    assert about.rms_error == 0
    with pytest.raises(UsageError, match="Hounsfield"):
        quantise(constant, STORE, Modality.CT, where="a")
