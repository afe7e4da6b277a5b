"""The 8-bit store: a volume in at most 256 steps of its own window, small enough to carry.

The intensity rules minmax, percentile and zscore do not depend on scale and offset of a volume, so
training reads the stored steps as they are. Rules in physical units (window) cannot: CT is refused.
Where the window is narrower than the volume, only a percentile rule that cuts as much reads the
steps as it reads the scan; `volume.intensity.require_units` refuses the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.dataset import Modality, Quantisation
from sssflow.errors import UsageError
from sssflow.ingest.config import StoreConfig


def require_storable(config: StoreConfig, modality: Modality, *, where: str) -> None:
    """Refuse the 8-bit store for CT.

    Raises:
        UsageError: The case is CT, whose rules need Hounsfield units.
    """
    if config.kind == "uint8" and modality is Modality.CT:
        raise UsageError(
            "CT cannot be stored in 8 bits: its intensity windows need Hounsfield units.",
            where=where,
            expected="ingest.store.kind=lossless",
            found=config.kind,
            action="Use the lossless store.",
        )


def quantise(
    image_shw: NDArray[np.generic], config: StoreConfig, modality: Modality, *, where: str
) -> tuple[NDArray[np.uint8], Quantisation]:
    """Map the window [low_pct, high_pct] of the volume to 0..steps; values beyond are clipped.

    A constant volume becomes zero.

    Returns:
        The steps, and window and errors: the error of a voxel is |stored - raw| after mapping back,
        as a share of the window.

    Raises:
        UsageError: See `require_storable`.
    """
    require_storable(config, modality, where=where)
    raw = image_shw.astype(np.float32)
    low, high = (float(v) for v in np.percentile(raw, [config.low_pct, config.high_pct]))
    span = high - low
    if span <= 0:
        steps = np.zeros(raw.shape, np.uint8)
        return steps, Quantisation(low=low, high=low, clipped_share=0.0, rms_error=0.0)
    scaled = (raw - np.float32(low)) * np.float32(config.steps / span)
    # Of the raw values: rounding puts the largest of them above the last step as often as not.
    clipped = float(np.mean((raw < np.float32(low)) | (raw > np.float32(high))))
    steps = np.clip(np.rint(scaled), 0, config.steps).astype(np.uint8)
    error = (steps.astype(np.float32) - scaled) / config.steps
    rms = float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))
    return steps, Quantisation(low=low, high=high, clipped_share=clipped, rms_error=rms)
