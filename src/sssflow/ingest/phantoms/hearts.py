"""Short-axis cine hearts: right ventricle, myocardium and left ventricle at two moments.

The anatomy is a solid: every slice cuts the same heart, whose shape is a function of the height
above the apex. Slices are drawn on a finer grid (in plane and through plane) and averaged, which
gives partial volume; masks are the majority of the same fine grid.

Shape letters: s slices (basal first), h rows, w columns, k sub-slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sssflow.ingest.phantoms.config import HeartConfig
from sssflow.ingest.phantoms.heart_anatomy import (
    LABEL_OF_TISSUE,
    LV,
    MYOCARDIUM,
    RV,
    Anatomy,
    contracted,
    draw_anatomy,
    tissue_map,
)
from sssflow.ingest.phantoms.texture import Floats, bias_field, blurred, pool, rician, smooth_noise
from sssflow.ingest.phantoms.thorax import Looks, Scene, draw_looks, draw_thorax, heart_frame

_FINE = 2  # fine pixels per pixel side
_SUB = 4  # sub-slices per slice
# Set by training a small U-Net (8 to 64 channels, 96 x 96, 600 steps): at difficulty 0.5 two
# patients give 0.70 mean Dice on twelve others and twenty give 0.82 (seed 0); without this factor
# (400 steps, difficulty 0.6) two gave 0.30 and twenty 0.58: too hard to tell methods apart.
_HARDEST = 0.3


@dataclass(frozen=True)
class HeartScan:
    """A drawn patient: `images` and `masks` are (s, h, w) by moment `ED` and `ES`."""

    group: str
    height_cm: float
    weight_kg: float
    frames: int
    es_frame: int
    spacing_mm: tuple[float, float, float]
    images: dict[str, NDArray[np.int16]]
    masks: dict[str, NDArray[np.uint8]]


def draw_heart(
    rng: np.random.Generator, group: str, sizes: HeartConfig, difficulty: float
) -> HeartScan:
    """Draw one patient of `group` (one of `GROUPS`).

    Args:
        rng: Source of every random number of this patient.
        group: NOR normal, DCM wide and weak, HCM thick, MINF thinned by an infarct, RV wide right
            ventricle.
        sizes: Ranges of matrix, slices and spacing.
        difficulty: 0 clear and alike, 1 faint, noisy and varied.

    Returns:
        Two moments on one grid; the basal slice comes first.
    """
    difficulty = _HARDEST * difficulty**2
    ed = draw_anatomy(rng, group, difficulty)
    scene, ed = _scene(rng, ed, sizes, difficulty)
    es = contracted(rng, ed, group)
    looks = draw_looks(rng, difficulty)
    background = draw_thorax(rng, scene, ed.epicardium, ed.rv_edge, looks, difficulty)
    images: dict[str, NDArray[np.int16]] = {}
    masks: dict[str, NDArray[np.uint8]] = {}
    bias = bias_field(rng, (scene.slices, *scene.shape_hw), 0.12 + 0.38 * difficulty)
    for moment, anatomy in (("ED", ed), ("ES", es)):
        signal, masks[moment] = _render(scene, anatomy, background, looks)
        images[moment] = _acquire(rng, signal * bias, looks)
    frames = int(rng.integers(16, 31))
    return HeartScan(
        group=group,
        height_cm=float(rng.integers(150, 196)),
        weight_kg=float(rng.integers(48, 111)),
        frames=frames,
        es_frame=round(frames * rng.uniform(0.33, 0.45)),
        spacing_mm=(scene.spacing_mm, scene.spacing_mm, scene.slice_mm),
        images=images,
        masks=masks,
    )


def _scene(
    rng: np.random.Generator, heart: Anatomy, sizes: HeartConfig, difficulty: float
) -> tuple[Scene, Anatomy]:
    """Choose the grid and lay the heart on it; one too wide for the field of view is narrowed."""
    height, width = (int(v) for v in rng.integers(*sizes.in_plane_px, size=2, endpoint=True))
    if height == width and sizes.in_plane_px[0] < sizes.in_plane_px[1]:
        width += 1 if width < sizes.in_plane_px[1] else -1
    spacing = float(np.round(rng.uniform(*sizes.spacing_mm), 4))
    slice_mm = float(np.round(rng.uniform(*sizes.slice_mm), 1))
    above, below = rng.uniform(0.4, 1.5), rng.uniform(0.6, 1.7)
    slices = int(np.clip(round(heart.length / slice_mm + above + below), *sizes.slices))
    # Too few slices for this length: the heart is made shorter, so that both ends stay visible.
    heart = replace(heart, length=min(heart.length, (slices - 1.6) * slice_mm))
    spare = slices * slice_mm - heart.length
    base_mm = spare * above / (above + below)
    field = min(height, width) * spacing
    extent = heart.epicardium + heart.rv_edge
    heart = heart.scaled(min(1.0, 0.8 * field / extent))
    septum = np.pi + (0.25 + 0.95 * difficulty) * rng.uniform(-1, 1)
    off = 0.055 * field * rng.uniform(-1, 1, size=2)
    pull = 0.5 * (heart.rv_edge - heart.epicardium)
    centre = (
        float(off[0] - pull * np.sin(septum)),
        float(off[1] - pull * np.cos(septum)),
    )
    fine_hw = (height * _FINE, width * _FINE)
    strength = 0.8 + 1.6 * difficulty
    warp = np.stack([strength * smooth_noise(rng, fine_hw, (5, 5)) for _ in range(2)])
    shifts = (rng.uniform(0, 2 * (0.3 + 0.7 * difficulty), slices)[:, None]) * _unit(rng, slices)
    scene = Scene(
        shape_hw=(height, width),
        slices=slices,
        spacing_mm=spacing,
        slice_mm=slice_mm,
        apex_mm=float(base_mm + heart.length),
        centre_mm=centre,
        septum_angle=float(septum),
        shifts_px=shifts.astype(np.float32),
        warp_mm=warp.astype(np.float32),
    )
    return scene, heart


def _unit(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    angle = rng.uniform(0, 2 * np.pi, count)
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _render(
    scene: Scene, heart: Anatomy, background: Floats, looks: Looks
) -> tuple[Floats, NDArray[np.uint8]]:
    """Signal (s, h, w) without noise, and the mask (s, h, w) of one moment."""
    signal = background.copy()
    mask = np.zeros(background.shape, dtype=np.uint8)
    parts = _SUB * _FINE**2
    for index in range(scene.slices):
        depth = (index + (np.arange(_SUB) + 0.5) / _SUB) * scene.slice_mm
        # The apex stays where it is; a shorter heart (systole) has its valves lower.
        u_k = ((scene.apex_mm - depth) / heart.length).astype(np.float32)
        n_hw, t_hw = heart_frame(scene, index, _FINE)
        rows, columns = _window(n_hw, t_hw, heart, _FINE)
        if u_k[0] < -0.15:
            continue
        tissue = tissue_map(heart, n_hw[rows, columns], t_hw[rows, columns], u_k)
        values = pool(looks.tissue[tissue], _FINE) / parts
        covered = pool(tissue > 0, _FINE) / parts
        coarse = (slice(rows.start // _FINE, rows.stop // _FINE),
                  slice(columns.start // _FINE, columns.stop // _FINE))  # fmt: skip
        here = signal[index][coarse]
        signal[index][coarse] = values + (1 - covered) * here
        mask[index][coarse] = _majority(LABEL_OF_TISSUE[tissue], parts)
    return signal, mask


def _majority(fine: NDArray[np.uint8], parts: int) -> NDArray[np.uint8]:
    counts = [pool(fine == value, _FINE) for value in (RV, MYOCARDIUM, LV)]
    votes = np.stack([parts - counts[0] - counts[1] - counts[2], *counts])
    return np.asarray(votes.argmax(axis=0), dtype=np.uint8)


def _window(n_hw: Floats, t_hw: Floats, heart: Anatomy, factor: int) -> tuple[slice, slice]:
    """The fine rows and columns that the heart can reach, in whole pixels."""
    reach = heart.epicardium * 1.25 + 14
    inside = (n_hw > -reach) & (n_hw < heart.rv_edge + 14) & (np.abs(t_hw) < reach * heart.rv_reach)
    found = []
    for axis in (1, 0):
        line = np.flatnonzero(inside.any(axis=axis))
        size = inside.shape[1 - axis]
        low, high = (int(line[0]), int(line[-1]) + 1) if line.size else (0, size)
        found.append(slice(low // factor * factor, min(-(-high // factor) * factor, size)))
    return found[0], found[1]


def _acquire(rng: np.random.Generator, signal: Floats, looks: Looks) -> NDArray[np.int16]:
    """Blur, gain drift between slices, noise, gamma and scanner scale; int16 from 0 up."""
    gain = np.exp(0.05 * rng.standard_normal(signal.shape[0])).astype(np.float32)
    seen = rician(rng, blurred(signal, looks.blur_px) * gain[:, None, None], looks.noise)
    scaled = looks.scale * np.power(blurred(seen, 0.4), np.float32(looks.gamma))
    return np.clip(np.rint(scaled), 0, 32000).astype(np.int16)
