"""Random fields and scanner effects that hearts and heads share.

Every function draws from the generator it is given and from nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], knots: tuple[int, ...]
) -> Floats:
    """A smooth random field with mean about 0 and standard deviation about 1.

    Args:
        rng: Source of the random numbers.
        shape: Shape of the field.
        knots: Random control values per axis (at least 2 each); fewer give a smoother field.

    Returns:
        float32 array of `shape`, linear between knots smoothed by a cubic spline.
    """
    coarse = rng.standard_normal(knots).astype(np.float32)
    field = coarse
    for axis, (size, count) in enumerate(zip(shape, knots, strict=True)):
        field = np.moveaxis(np.tensordot(_spline_matrix(size, count), field, (1, axis)), 0, axis)
    spread = float(field.std())
    return np.asarray((field - field.mean()) / (spread if spread > 0 else 1.0), dtype=np.float32)


def _spline_matrix(size: int, knots: int) -> Floats:
    """Weights (size, knots) that spread `knots` values over `size` samples; rows sum to 1."""
    at = np.linspace(0.0, knots - 1.0, size, dtype=np.float32)[:, None]
    gap = np.abs(at - np.arange(knots, dtype=np.float32)[None, :])
    # The uniform cubic B-spline: two polynomial pieces, support of two knots on either side.
    inner = 2 / 3 - gap**2 + gap**3 / 2
    outer = np.clip(2 - gap, 0, None) ** 3 / 6
    weights = np.where(gap < 1, inner, outer).astype(np.float32)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def bias_field(
    rng: np.random.Generator, shape_shw: tuple[int, int, int], strength: float
) -> Floats:
    """A positive multiplicative coil field, geometric mean about 1; `strength` is its log-sd."""
    field = smooth_noise(rng, shape_shw, (2, 3, 3))
    return np.asarray(np.exp(strength * field), dtype=np.float32)


def rician(rng: np.random.Generator, signal: Floats, sigma: float) -> Floats:
    """Magnitude of `signal` with complex Gaussian noise of standard deviation `sigma`."""
    real = signal + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.asarray(np.hypot(real, imaginary), dtype=np.float32)


def step(distance_mm: Floats, width_mm: float = 1.0) -> Floats:
    """Soft inside: 1 well below zero distance, 0 well above, linear over `2 * width_mm`."""
    return np.asarray(np.clip(0.5 - distance_mm / (2 * width_mm), 0, 1), dtype=np.float32)


def pool(fine: NDArray[Any], factor: int) -> Floats:
    """Sum of a (k, h*factor, w*factor) array over k and over each factor x factor square.

    Sums are exact for booleans (up to 255 of them) and float32 otherwise.
    """
    flat = fine.sum(axis=0, dtype=np.uint8 if fine.dtype == np.bool_ else np.float32)
    total = flat[0::factor, 0::factor].astype(np.float32)
    for row in range(factor):
        for column in range(factor):
            if row or column:
                total += flat[row::factor, column::factor]
    return np.asarray(total, dtype=np.float32)


def blurred(image_shw: Floats, sigma_px: float) -> Floats:
    """In-plane Gaussian blur; slices stay apart."""
    return np.asarray(ndimage.gaussian_filter(image_shw, (0, sigma_px, sigma_px)), dtype=np.float32)
