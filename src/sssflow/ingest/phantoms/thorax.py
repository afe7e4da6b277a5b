"""What surrounds the heart in a short-axis slice, and how one patient's scan looks.

The background is drawn on the pixel grid with soft edges; the heart is laid over it.
Shape letters: s slices (basal first), h rows, w columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sssflow.ingest.phantoms.texture import Floats, smooth_noise, step


@dataclass(frozen=True)
class Scene:
    """Everything of one patient that both moments share."""

    shape_hw: tuple[int, int]
    slices: int
    spacing_mm: float
    slice_mm: float
    apex_mm: float
    centre_mm: tuple[float, float]
    septum_angle: float
    shifts_px: Floats
    warp_mm: Floats


@dataclass(frozen=True)
class Looks:
    """Signal of each tissue, noise and scanner scale of one patient."""

    tissue: Floats
    lung: float
    liver: float
    muscle: float
    skin_fat: float
    noise: float
    blur_px: float
    gamma: float
    scale: float


def draw_looks(rng: np.random.Generator, difficulty: float) -> Looks:
    """Blood is about 1; the more difficult, the closer muscle comes to blood in some patients."""
    muscle = rng.uniform(0.25, 0.36 + 0.34 * difficulty)
    rv_blood = rng.uniform(1 - 0.35 * difficulty, 1 + 0.12 * difficulty)
    fat = rng.uniform(0.7 - 0.3 * difficulty, 1.0 + 0.5 * difficulty)
    tissue = np.array(
        [0, rv_blood, muscle, 1.0, muscle, muscle * 0.95, fat, rng.uniform(0.8, 1.1)],
        dtype=np.float32,
    )
    return Looks(
        tissue=tissue,
        lung=rng.uniform(0.04, 0.08 + 0.22 * difficulty),
        liver=rng.uniform(0.3, 0.5 + 0.4 * difficulty),
        muscle=rng.uniform(0.2, 0.5),
        skin_fat=fat * rng.uniform(0.8, 1.3),
        noise=rng.uniform(0.015, 0.03 + 0.12 * difficulty),
        blur_px=rng.uniform(0.35, 0.5 + 0.45 * difficulty),
        gamma=float(np.exp(rng.uniform(-0.35, 0.35) * difficulty)),
        scale=float(np.exp(rng.uniform(np.log(120), np.log(1500)))),
    )


def heart_frame(scene: Scene, index: int, factor: int) -> tuple[Floats, Floats]:
    """Coordinates (n, t) in mm of the points of slice `index` on a grid `factor` times finer."""
    height, width = scene.shape_hw
    dy, dx = scene.shifts_px[index] * scene.spacing_mm
    stride = scene.warp_mm.shape[1] // (height * factor)
    warp_y, warp_x = scene.warp_mm[:, ::stride, ::stride]
    pixel = scene.spacing_mm / factor
    y = (np.arange(height * factor, dtype=np.float32) - (height * factor - 1) / 2) * pixel
    x = (np.arange(width * factor, dtype=np.float32) - (width * factor - 1) / 2) * pixel
    y_hw = y[:, None] - scene.centre_mm[0] - dy + warp_y
    x_hw = x[None, :] - scene.centre_mm[1] - dx + warp_x
    cos, sin = np.cos(scene.septum_angle), np.sin(scene.septum_angle)
    n_hw = x_hw * cos + y_hw * sin
    t_hw = y_hw * cos - x_hw * sin
    return n_hw.astype(np.float32), t_hw.astype(np.float32)


def draw_thorax(
    rng: np.random.Generator,
    scene: Scene,
    epicardium_mm: float,
    rv_edge_mm: float,
    looks: Looks,
    difficulty: float,
) -> Floats:
    """Signal (s, h, w) of mediastinum, lung, liver, chest wall, vessels and texture."""
    shape = (scene.slices, *scene.shape_hw)
    frames = [heart_frame(scene, index, 1) for index in range(scene.slices)]
    n = np.stack([frame[0] for frame in frames])
    t = np.stack([frame[1] for frame in frames])
    z = np.linspace(0, 1, scene.slices, dtype=np.float32)[:, None, None]
    wobble = [5.0 * smooth_noise(rng, shape, (3, 6, 6)) for _ in range(3)]
    texture = smooth_noise(rng, shape, (scene.slices, 26, 26))
    coarse = smooth_noise(rng, shape, (3, 9, 9))
    signal = np.full(shape, looks.muscle, dtype=np.float32)
    signal += 0.12 * coarse
    side = 1.0 if rng.random() < 0.7 else -1.0
    gap = rng.uniform(3, 14, size=3)
    # Lung behind the free wall, liver or stomach below (more of it towards the apex).
    lung = step(n + epicardium_mm + gap[0] + wobble[0], 1.5)
    _mix(signal, lung, looks.lung + 0.03 * texture)
    _draw_blobs(rng, signal, n, t, (-epicardium_mm - 32, 0.0), int(rng.integers(1, 5)), 4.5)
    liver = step(epicardium_mm + gap[1] + 14 * (1 - z) - side * t + wobble[1] - 0.25 * n, 1.5)
    _mix(signal, liver, looks.liver + (0.05 + 0.05 * difficulty) * texture)
    _draw_chest(rng, signal, n - rv_edge_mm - gap[2], wobble[2], looks)
    cavities = int(rng.integers(0, 3 + round(6 * difficulty)))
    _draw_cavities(rng, signal, n, t, epicardium_mm, looks, cavities)
    near = step(
        np.hypot(n - 0.5 * (rv_edge_mm - epicardium_mm), t) - epicardium_mm - 12 - wobble[1], 6.0
    )
    _mix(signal, 0.85 * near * step(7.0 - 7.0 * coarse, 2.0), looks.tissue[6])
    return np.clip(signal * (1 + 0.06 * texture), 0, None).astype(np.float32)


def _draw_chest(
    rng: np.random.Generator, signal: Floats, depth: Floats, wobble: Floats, looks: Looks
) -> None:
    """From zero `depth` (mm) outwards: muscle streaked with fat, fat under the skin, air."""
    muscle = looks.muscle * 0.8
    wave = np.sin((depth + 1.3 * wobble) / rng.uniform(1.8, 3.0))
    _mix(
        signal, step(-depth - wobble, 1.5), muscle + 0.3 * (looks.skin_fat - muscle) * (wave > 0.2)
    )
    layer = rng.uniform(10, 20)
    _mix(signal, step(layer - depth - 0.5 * wobble), looks.skin_fat)
    skin = layer + rng.uniform(8, 30)
    _mix(signal, step(skin - depth - 0.3 * wobble), 0.02)


def _mix(signal: Floats, share: Floats, value: Floats | float | np.floating[Any]) -> None:
    signal += share * (value - signal)


def _draw_blobs(
    rng: np.random.Generator,
    signal: Floats,
    n: Floats,
    t: Floats,
    centre: tuple[float, float],
    count: int,
    radius_mm: float,
) -> None:
    """Bright vessels cut across, scattered about `centre`."""
    for _ in range(count):
        at = rng.normal(0, 18, size=2)
        radius = radius_mm * rng.uniform(0.4, 1.0)
        share = step(np.hypot(n - centre[0] - at[0], t - centre[1] - at[1]) - radius)
        _mix(signal, share, rng.uniform(0.5, 1.0))


def _draw_cavities(
    rng: np.random.Generator,
    signal: Floats,
    n: Floats,
    t: Floats,
    epicardium_mm: float,
    looks: Looks,
    count: int,
) -> None:
    """Round bright lumens with dark walls (aorta, stomach, bowel) that look like a ventricle."""
    for _ in range(count):
        radius = rng.uniform(6, 15)
        angle = rng.uniform(np.pi / 2, 3 * np.pi / 2)
        far = epicardium_mm + radius + rng.uniform(6, 22)
        middle = (far * np.cos(angle), far * np.sin(angle))
        stretch = rng.uniform(0.7, 1.4)
        away = np.hypot((n - middle[0]) * stretch, (t - middle[1]) / stretch)
        _mix(signal, step(away - radius - rng.uniform(2, 5)), float(looks.tissue[2]))
        _mix(signal, step(away - radius), rng.uniform(0.75, 1.1))
