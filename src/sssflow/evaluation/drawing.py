"""Slices as pictures: grey image, class outlines, prompts, in colours that colour-blind eyes part.

Axis letters: h rows, w columns, c colour channels (RGB).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Labels = NDArray[np.uint8]
Pixels = NDArray[np.uint8]
Rgb = tuple[int, int, int]

# Okabe and Ito's palette without black, in an order that keeps neighbours apart on grey.
PALETTE: tuple[Rgb, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)


def class_colour(index: int) -> Rgb:
    """Colour of a class from 1; colours repeat after seven classes."""
    return PALETTE[(index - 1) % len(PALETTE)]


def hex_colour(index: int) -> str:
    """The same as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*class_colour(index))


def display_range(volume_shw: NDArray[np.generic]) -> tuple[float, float]:
    """Grey limits of a volume: its 0.5th and 99.5th percentile."""
    low, high = np.percentile(volume_shw.astype(np.float32), [0.5, 99.5])
    return float(low), float(high)


def grey(slice_hw: NDArray[np.generic], limits: tuple[float, float]) -> Pixels:
    """Intensities as grey values 0 to 255; a range without width is black."""
    low, high = limits
    if high <= low:
        return np.zeros(slice_hw.shape, dtype=np.uint8)
    scaled = (slice_hw.astype(np.float32) - low) / (high - low)
    pixels: Pixels = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    return pixels


def fit_size(
    size_hw: tuple[int, int], spacing_hw: tuple[float, float], side: int
) -> tuple[int, int]:
    """Display size (h, w) whose longest side is `side`, with the proportions of the tissue."""
    extent = size_hw[0] * spacing_hw[0], size_hw[1] * spacing_hw[1]
    scale = side / max(extent)
    return max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale))


def resize_grey(pixels_hw: Pixels, size_hw: tuple[int, int]) -> Pixels:
    """Bilinear resize for display."""
    picture = Image.fromarray(pixels_hw).resize(size_hw[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8)


def resize_labels(labels_hw: Labels, size_hw: tuple[int, int]) -> Labels:
    """Nearest resize for display."""
    picture = Image.fromarray(labels_hw).resize(size_hw[::-1], Image.Resampling.NEAREST)
    return np.asarray(picture, dtype=np.uint8)


def outline(labels_hw: Labels, *, width: int = 1) -> Labels:
    """Labels on the inner rim of each class, 0 elsewhere; the rim of the image is no rim."""
    rim = np.zeros(labels_hw.shape, dtype=bool)
    padded = np.pad(labels_hw, width, mode="edge")
    h, w = labels_hw.shape
    for step in range(1, width + 1):
        for dy, dx in ((step, 0), (-step, 0), (0, step), (0, -step)):
            shifted = padded[width + dy : width + dy + h, width + dx : width + dx + w]
            rim |= shifted != labels_hw
    return np.where(rim, labels_hw, 0).astype(np.uint8)


def dashed(labels_hw: Labels, *, period: int = 6) -> Labels:
    """The same outline with gaps, so that two outlines in one picture can be told apart."""
    h, w = labels_hw.shape
    yy, xx = np.mgrid[:h, :w]
    return np.where((yy + xx) % period < period - 2, labels_hw, 0).astype(np.uint8)


def paint(picture_hwc: Pixels, labels_hw: Labels, colour: Rgb | None = None) -> None:
    """Colour the labelled pixels of `picture_hwc` in place, by class or in one colour."""
    for index in np.unique(labels_hw):
        if index:
            picture_hwc[labels_hw == index] = colour or class_colour(int(index))


def to_rgb(pixels_hw: Pixels) -> Pixels:
    """Grey (h, w) to RGB (h, w, c)."""
    return np.repeat(pixels_hw[..., None], 3, axis=2)


def content_slices(volumes_shw: Sequence[Labels], count: int) -> tuple[int, ...]:
    """At most `count` slice indices, evenly over those where any volume has a class.

    Without any class: evenly over all slices. Rising, without repetition.
    """
    filled = np.zeros(volumes_shw[0].shape[0], dtype=bool)
    for volume in volumes_shw:
        filled |= volume.any(axis=(1, 2))
    places = np.flatnonzero(filled) if filled.any() else np.arange(filled.size)
    picked = np.linspace(0, places.size - 1, min(count, places.size)).round().astype(int)
    return tuple(int(places[i]) for i in sorted(set(picked.tolist())))
