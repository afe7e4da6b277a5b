"""Procedural clips: objects of `shapes` painted into grey slices, with masks of what is visible.

Letters: t slices, y rows, x columns, o objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sssflow.sam.shapes import (
    Canvas,
    Floats,
    Random,
    band_field,
    blob_field,
    linear_matrix,
    polygon_field,
    random_disc,
    ring_group,
    shell_group,
    smooth_noise,
)

Masks = NDArray[np.bool_]

_MIN_PIXELS = 12


@dataclass(frozen=True)
class Scene:
    """One clip.

    Attributes:
        image_tyx: float32 in [0, 1].
        masks_otyx: Objects that may be prompted; they may overlap (a disc and its cavity).
    """

    image_tyx: Floats
    masks_otyx: Masks


@dataclass
class _Painter:
    """Paints fields in order; later ones cover earlier ones."""

    canvas: Canvas
    rng: Random
    image_tyx: Floats
    masks: list[Masks]

    def paint(self, field_tyx: Floats, *, target: bool = True, level: float | None = None) -> float:
        """Add one object; returns its grey level."""
        rng = self.rng
        coverage = np.clip(field_tyx + np.float32(0.5), 0, 1)
        inside = field_tyx > 0
        if level is None:
            level = self._contrasting_level(inside)
        fill: Floats = np.full_like(self.image_tyx, level)
        if rng.uniform() < 0.5:
            cells = int(rng.integers(4, max(5, self.canvas.size // 6)))
            fill += smooth_noise(rng, self.canvas, cells) * np.float32(rng.uniform(0, 0.06))
        self.image_tyx += coverage * (fill - self.image_tyx)
        self.masks = [mask & ~inside for mask in self.masks]
        if target:
            self.masks.append(inside)
        return level

    def _contrasting_level(self, inside: Masks) -> float:
        behind = float(self.image_tyx[inside].mean()) if inside.any() else 0.5
        step = float(self.rng.uniform(0.1, 0.6) if self.rng.uniform() < 0.9 else 0.06)
        sign = 1 if self.rng.uniform() < 0.5 else -1
        if not 0.02 <= behind + sign * step <= 0.98:
            sign = -sign
        return float(np.clip(behind + sign * step, 0.0, 1.0))


def draw_scene(rng: Random, *, size: int, length: int = 1) -> Scene:
    """A clip of `length` slices of `size` x `size` pixels with at least one visible object."""
    canvas = Canvas(size, length)
    while True:
        painter = _Painter(canvas, rng, _background(rng, canvas), [])
        _fill(painter)
        kept = [m for m in painter.masks if _is_promptable(m)]
        if kept:
            image = _acquire(rng, canvas, painter.image_tyx)
            return Scene(image, np.stack(kept))


def _is_promptable(mask_tyx: Masks) -> bool:
    areas = mask_tyx.sum(axis=(1, 2))
    pixels = mask_tyx.shape[1] * mask_tyx.shape[2]
    return bool(areas[0] >= _MIN_PIXELS and areas[0] < 0.7 * pixels)


def _background(rng: Random, canvas: Canvas) -> Floats:
    level = rng.uniform(0, 0.8)
    image: Floats = np.full((canvas.length, canvas.size, canvas.size), level, np.float32)
    for _ in range(int(rng.integers(0, 4))):
        cells = int(rng.integers(3, 12))
        noise = smooth_noise(rng, canvas, cells)
        region = np.clip((noise - rng.uniform(-0.5, 1.0)) * canvas.size / cells * 0.5, 0, 1)
        image += region.astype(np.float32) * (np.float32(rng.uniform(0, 1)) - image)
    return image


def _fill(painter: _Painter) -> None:
    """Paint a shell or none, clutter, rings, and single objects on top."""
    rng, canvas = painter.rng, painter.canvas
    if rng.uniform() < 0.25:
        _paint_shell(painter)
    for _ in range(int(rng.integers(0, 4))):
        painter.paint(_single(rng, canvas), target=rng.uniform() < 0.5)
    for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
        _paint_ring(painter)
    for _ in range(int(rng.integers(0, 3))):
        painter.paint(_single(rng, canvas))


def _single(rng: Random, canvas: Canvas) -> Floats:
    kind = rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])
    if kind == 0:
        return random_disc(rng, canvas, (0.03, 0.25)).field(canvas)
    return (blob_field, polygon_field, band_field)[kind - 1](rng, canvas)


def _paint_ring(painter: _Painter) -> None:
    """Wall, cavity and crescent; cavity and crescent often share a grey level, as blood does.

    Wall and cavity together are a target too at times: the same box then means the whole disc.
    """
    rng = painter.rng
    cavity, wall, crescent = ring_group(rng, painter.canvas)
    wall_level = painter.paint(wall)
    level = painter.paint(cavity)
    if rng.uniform() < 0.6:
        painter.masks.append((wall > 0) | (cavity > 0))
    painter.paint(crescent, level=level if rng.uniform() < 0.6 else None)
    if rng.uniform() < 0.3:  # something beside the wall that is as bright as it
        patch = random_disc(rng, painter.canvas, (0.05, 0.2)).field(painter.canvas)
        beside = np.minimum(patch, -np.maximum(np.maximum(wall, cavity), crescent))
        painter.paint(beside, target=False, level=wall_level)


def _paint_shell(painter: _Painter) -> None:
    rng = painter.rng
    shell, inside, pieces = shell_group(rng, painter.canvas)
    painter.paint(inside, target=rng.uniform() < 0.3)
    painter.paint(shell, level=float(rng.uniform(0.7, 1.0)) if rng.uniform() < 0.7 else None)
    for piece in pieces:
        painter.paint(piece)


def _acquire(rng: Random, canvas: Canvas, image_tyx: Floats) -> Floats:
    """What a scanner does: coarse pixels, bias field, noise (Gaussian or Rician), gamma."""
    coarse = max(24, round(canvas.size / rng.uniform(1, 4.0)))
    down = linear_matrix(coarse, canvas.size)
    image = down @ image_tyx @ down.T
    if rng.uniform() < 0.4:  # point spread beyond the pixel
        knots = max(16, round(coarse / rng.uniform(1.2, 2.0)))
        blur = linear_matrix(coarse, knots) @ linear_matrix(knots, coarse)
        image = blur @ image @ blur.T
    small = Canvas(coarse, canvas.length)
    if rng.uniform() < 0.6:
        image = image * np.exp(smooth_noise(rng, small, 3) * np.float32(rng.uniform(0, 0.25)))
    sigma = float(rng.uniform(0, 0.09))
    noise = rng.standard_normal((2, *image.shape)).astype(np.float32) * np.float32(sigma)
    if rng.uniform() < 0.5:
        image = np.hypot(image + noise[0], noise[1])
    else:
        image = image + noise[0]
    image = np.clip(image, 0, None) ** np.float32(np.exp(rng.normal(0, 0.2)))
    low, high = np.quantile(image, [0.005, 0.995])
    stretch = rng.uniform(0.75, 1.0)
    image = np.clip((image - low) / max(high - low, 1e-3) * stretch, 0, 1)
    up = linear_matrix(canvas.size, coarse)
    return np.asarray(up @ image @ up.T, dtype=np.float32)
