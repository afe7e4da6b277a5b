"""Intensity rules: raw voxel values of one volume to network input, with no other case involved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.dataset import Quantisation
from sssflow.contracts.model import IntensityRule
from sssflow.errors import DataError, UsageError

_SLACK = 1.05
"""Percentiles lie between voxels: a store may cut one voxel more on each side than they say."""


def require_finite(image_shw: NDArray[np.generic], where: object) -> None:
    """Refuse raw voxel values that are not finite as float32, of any real dtype.

    Raises:
        DataError: There are some; `where` names the file.
    """
    if image_shw.dtype.kind in "iu":
        return
    finite = np.isfinite(image_shw.astype(np.float32, copy=False))
    if finite.all():
        return
    raise DataError(
        "The image holds NaN or infinity.",
        where=where,
        expected="finite voxels",
        found=f"{int((~finite).sum())} of {image_shw.size} voxels",
        action="Find out what made them; replace them in the source, not here.",
    )


def require_units(rule: IntensityRule, quantised: Quantisation | None, where: object) -> None:
    """Refuse an 8-bit image for a rule that would read it otherwise than the scan it was made of.

    Raises:
        UsageError: The image was stored in steps of its own window, and the rule is `none` or
            `window`, which read the scan's own units; or the store cut away more voxels than the
            rule does, so that the ends of the rule lie elsewhere in the scan itself.
    """
    if quantised is None:
        return
    if rule.kind in ("none", "window"):
        raise UsageError(
            "The image is stored in 8 bits, and the intensity rule needs its own units.",
            where=where,
            expected="a dataset packed with ingest.store.kind=lossless",
            found=f"rule {rule.kind}; 0 stands for {quantised.low:g}",
            action="Pack the dataset again, or use the rule minmax, percentile or zscore.",
        )
    cut_by_rule = 0.0
    if rule.kind == "percentile":
        cut_by_rule = (rule.low_pct + 100 - rule.high_pct) / 100
    if quantised.clipped_share > _SLACK * cut_by_rule:
        raise UsageError(
            "The image is stored in 8 bits and cut, and the intensity rule needs what was cut.",
            where=where,
            expected=f"at most {cut_by_rule:.3%} of the voxels clipped by the store",
            found=f"rule {rule.kind}; {quantised.clipped_share:.3%} clipped",
            action="Pack the dataset with ingest.store.low_pct=0 and ingest.store.high_pct=100, "
            "or use the rule percentile with the percentiles of the store.",
        )


def normalise(volume_shw: NDArray[np.generic], rule: IntensityRule) -> NDArray[np.float32]:
    """Apply `rule` to a whole volume.

    A constant volume becomes zero. Input of any real dtype; output float32 of the same shape, in
    [0, 1] for all rules but `zscore` and `none`.
    """
    volume: NDArray[np.float32] = volume_shw.astype(np.float32)
    if rule.kind == "none":
        return volume
    if rule.kind == "zscore":
        std = float(volume.std())
        if std == 0:
            return np.zeros_like(volume)
        volume -= np.float32(volume.mean())
        volume /= np.float32(std)
        return volume
    low, high = _limits(volume, rule)
    if high <= low:
        return np.zeros_like(volume)
    volume -= np.float32(low)
    volume /= np.float32(high - low)
    return np.clip(volume, 0.0, 1.0, out=volume)


def _limits(volume: NDArray[np.float32], rule: IntensityRule) -> tuple[float, float]:
    if rule.kind == "minmax":
        return float(volume.min()), float(volume.max())
    if rule.kind == "percentile":
        low, high = np.percentile(volume, [rule.low_pct, rule.high_pct])
        return float(low), float(high)
    return rule.window_low, rule.window_high
