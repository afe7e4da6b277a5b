"""Non-contrast head CT in Hounsfield units, healthy or with bleeds of five kinds.

Frame: millimetres from the middle of the brain, x to the patient's left, y to the front, z up.
Depth is the distance below the skin, `inside` the distance below the inner table of the skull.
Shape letters: s slices (lowest first), h rows (towards the front), w columns (towards the left).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sssflow.ingest.phantoms.bleeds import BLEEDS, Bleed, bleed_shape, choose_bleeds
from sssflow.ingest.phantoms.config import HeadConfig
from sssflow.ingest.phantoms.texture import Floats, blurred, pool, smooth_noise, step

_AIR_HU = -1000.0
_FINE_UP_TO_PX = 200  # smaller matrices are drawn twice as fine and averaged


@dataclass(frozen=True)
class Head:
    """One head; lengths in mm. `axes` are the half-axes of the skin: left, front, up, down."""

    axes: tuple[float, float, float, float]
    scalp: float
    bone: float
    bone_hu: float
    grey_hu: float
    white_hu: float
    csf_hu: float
    atrophy: float
    ventricle: float
    asymmetry: float
    turn: float
    centre: tuple[float, float]
    noise_hu: float


@dataclass(frozen=True)
class HeadScan:
    """A drawn head: HU `image` and classes 0..5 `mask`, both (s, h, w), and the kinds of bleeds."""

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    bleeds: tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """The fields of one fine slice: coordinates in mm, depth, and three noise fields."""

    x: Floats
    y: Floats
    z: float
    depth: Floats
    inside: Floats
    ventricle: Floats
    folds: Floats
    rough: Floats
    grain: Floats


def draw_head(
    rng: np.random.Generator, sizes: HeadConfig, difficulty: float, first_bleed: int
) -> HeadScan:
    """Draw one patient.

    Args:
        rng: Source of every random number of this patient.
        sizes: Ranges of matrix, slices, spacing and number of bleeds.
        difficulty: 0 clear, 1 faint small bleeds in noise.
        first_bleed: Class (1..5) that the scan has for certain; 0 for a healthy head.

    Returns:
        HU from -1024 up; a healthy head has an empty mask.
    """
    px = int(rng.integers(*sizes.in_plane_px, endpoint=True))
    count = int(rng.integers(*sizes.slices, endpoint=True))
    slice_mm = float(np.round(rng.uniform(*sizes.slice_mm), 2))
    pixel_mm = float(np.round(rng.uniform(215, 245) / px, 4))
    head = _head(rng, count * slice_mm, difficulty)
    bleeds = choose_bleeds(rng, sizes.bleeds, first_bleed, difficulty) if first_bleed else ()
    fine = 2 if px <= _FINE_UP_TO_PX else 1
    shape = (count, px * fine, px * fine)
    height_mm = count * slice_mm
    knots = (max(4, round(height_mm / 14)), 30, 30)
    folds = smooth_noise(rng, shape, knots)
    rough = smooth_noise(rng, shape, (max(4, round(height_mm / 20)), 12, 12))
    grain = smooth_noise(rng, shape, (count, 40, 40))
    image = np.empty((count, px, px), dtype=np.float32)
    mask = np.zeros((count, px, px), dtype=np.uint8)
    for index in range(count):
        z = (index + 0.5) * slice_mm - 0.42 * height_mm
        here = _slice(head, z, px * fine, pixel_mm / fine, folds[index], rough[index], grain[index])
        hu, label = _draw_slice(head, here, bleeds)
        image[index] = pool(hu[None], fine) / fine**2
        mask[index] = _majority(label, fine)
    return HeadScan(
        image=_acquire(rng, image, head.noise_hu),
        mask=mask,
        spacing_mm=(pixel_mm, pixel_mm, slice_mm),
        bleeds=tuple(sorted({bleed.kind for bleed in bleeds} & set(np.unique(mask).tolist()))),
    )


def _head(rng: np.random.Generator, height_mm: float, difficulty: float) -> Head:
    return Head(
        axes=(
            rng.uniform(68, 77),
            rng.uniform(84, 95),
            0.56 * height_mm,
            rng.uniform(1.0, 1.3) * height_mm,
        ),
        scalp=rng.uniform(4, 7),
        bone=rng.uniform(5, 8),
        bone_hu=rng.uniform(800, 1150),
        grey_hu=rng.uniform(34, 38),
        white_hu=rng.uniform(26, 30),
        csf_hu=rng.uniform(6, 12),
        atrophy=rng.uniform(0.2, 1.0),
        ventricle=rng.uniform(0.75, 1.5),
        asymmetry=rng.uniform(-0.15, 0.15),
        turn=rng.uniform(-0.2, 0.2) * (0.4 + 0.6 * difficulty),
        centre=(rng.uniform(-6, 6), rng.uniform(-6, 6)),
        noise_hu=rng.uniform(2.0, 3.0 + 4.0 * difficulty),
    )


def _slice(
    head: Head, z: float, px: int, pixel_mm: float, folds: Floats, rough: Floats, grain: Floats
) -> Slice:
    line = (np.arange(px, dtype=np.float32) - (px - 1) / 2) * np.float32(pixel_mm)
    cos, sin = np.cos(head.turn), np.sin(head.turn)
    raw_x, raw_y = line[None, :] - head.centre[0], line[:, None] - head.centre[1]
    x = np.asarray(raw_x * cos + raw_y * sin, dtype=np.float32)
    y = np.asarray(raw_y * cos - raw_x * sin, dtype=np.float32)
    side, front, up, down = head.axes
    # The head is broader behind than in front; below the equator it tapers towards the neck.
    width = side * (1 - 0.10 * np.clip(y / front, -1, 1) + 0.02 * np.sign(x) * head.asymmetry)
    level = z / (up if z > 0 else down)
    rho = np.sqrt((x / width) ** 2 + (y / front) ** 2 + level**2) + np.float32(1e-4)
    scale = np.sqrt((x * x + y * y + z * z + 1) / rho**2) if z > 0 else 0.5 * (side + front)
    depth = np.asarray((1 - rho) * np.minimum(scale, 95), dtype=np.float32)
    inside = depth - head.scalp - head.bone
    return Slice(
        x=x, y=y, z=z, depth=depth, inside=inside,
        ventricle=_ventricles(head, x, y, z, rough), folds=folds, rough=rough, grain=grain,
    )  # fmt: skip


def _ventricles(head: Head, x: Floats, y: Floats, z: float, rough: Floats) -> Floats:
    """Distance (mm, negative inside) to the lateral, third and fourth ventricles."""
    grow = head.ventricle
    best = np.full(x.shape, 50.0, dtype=np.float32)
    for side in (-1.0, 1.0):
        wide = grow * (1 + side * head.asymmetry)
        # Bodies and frontal horns run along the midline; the hind parts turn outwards.
        bow = side * (7 + 4 * wide + 0.010 * np.clip(4 - y, 0, None) ** 2 + 0.006 * (y - 5) ** 2)
        body = _ellipsoid(
            (x - bow).astype(np.float32), y + 2, z - 8, 4.2 * wide, 36, 13 * wide**0.5
        )
        hind = _ellipsoid(x - side * 25, y + 34, z - 1, 5.5 * wide, 15, 9)
        best = np.minimum(best, np.minimum(body, hind))
    third = _ellipsoid(x, y - 2, z + 8, 1.6 * grow**1.5, 13, 9)
    fourth = _ellipsoid(x, y + 38, z + 36, 6 * grow, 4.5, 9)
    best = np.minimum(best, np.minimum(third, fourth))
    return np.asarray(best + 0.5 * rough, dtype=np.float32)


def _ellipsoid(dx: Floats, dy: Floats, dz: float, a: float, b: float, c: float) -> Floats:
    rho = np.sqrt((dx / a) ** 2 + (dy / b) ** 2 + (dz / c) ** 2)
    return np.asarray((rho - 1) * min(a, b, c), dtype=np.float32)


def _draw_slice(
    head: Head, here: Slice, bleeds: tuple[Bleed, ...]
) -> tuple[Floats, NDArray[np.uint8]]:
    """HU and class of each fine pixel of one slice."""
    hu = np.full(here.x.shape, _AIR_HU, dtype=np.float32)
    rest = (here.y < -20) & (np.abs(-here.depth - 7) < 1.5) & (here.z < 40)
    hu[rest] = -250
    fat = 0.5 + 0.5 * np.tanh(2 * here.grain)
    hu = np.where(here.depth > 0, 45 - 110 * fat, hu)
    hu = np.where((here.depth > 0) & (here.depth < 1.6), 40, hu)
    diploe = np.abs(here.depth - head.scalp - 0.5 * head.bone) < 0.2 * head.bone
    bone = head.bone_hu - np.where(diploe, 320, 0) + 50 * here.grain
    hu = np.where(here.depth > head.scalp, np.clip(bone, 410, 1190), hu)
    hu = np.where(here.inside > 0, _brain(head, here), hu)
    label = np.zeros(here.x.shape, dtype=np.uint8)
    for bleed in bleeds:
        shape, rim = bleed_shape(
            bleed, here.x, here.y, here.z, here.inside, here.ventricle, here.folds, here.rough
        )
        # Earlier bleeds keep their place; a rim of swelling is dark and belongs to no class.
        hu = np.where(rim & (label == 0) & (here.ventricle > 0), 18 + here.grain, hu)
        new = shape & (here.inside > 0) & (label == 0)
        label[new] = bleed.kind
        hu = np.where(new, np.clip(bleed.hu + 2.0 * here.grain, 52, 84), hu)
    _draw_skull_base(hu, label, here, head)
    return np.asarray(hu, dtype=np.float32), label


def _brain(head: Head, here: Slice) -> Floats:
    """Grey and white matter, deep nuclei, falx, and fluid in ventricles and furrows."""
    inside, folds = here.inside, here.folds
    cortex = step(inside - 5.5 - 2.5 * folds, 2.0)
    furrow_width = 0.10 + 0.16 * head.atrophy
    furrow = (np.abs(folds) < furrow_width * np.clip(1.4 - inside / 16, 0, 1)) & (inside < 20)
    cortex = np.maximum(cortex, (np.abs(folds) < furrow_width + 0.3) & (inside < 17))
    for side in (-1.0, 1.0):
        nuclei = _ellipsoid(here.x - side * 24, here.y - 6, here.z - 2, 7, 15, 11)
        thalamus = _ellipsoid(here.x - side * 11, here.y + 11, here.z - 2, 7, 12, 10)
        cortex = np.maximum(cortex, 0.9 * step(np.minimum(nuclei, thalamus), 1.5))
    tissue = head.white_hu + (head.grey_hu - head.white_hu) * cortex + 0.8 * here.grain
    furrowed = furrow & (here.z > -30)
    tissue = np.where(furrowed, head.csf_hu + 0.25 * (tissue - head.csf_hu), tissue)
    tissue = np.where(inside < 0.6 + 1.6 * head.atrophy, head.csf_hu + 4, tissue)
    cleft = (np.abs(here.x) < 1.0 + head.atrophy) & (here.ventricle > 3)
    midline = cleft & (here.z > 4) & ((np.abs(here.y) > 42) | (here.z > 30))
    tissue = np.where(midline, head.csf_hu + 5, tissue)
    tissue = np.where(midline & (np.abs(here.x) < 0.9), 46, tissue)
    fluid = step(here.ventricle, 0.8)
    tissue = tissue + fluid * (head.csf_hu - tissue)
    # Beam hardening lifts the values just under the bone.
    return np.asarray(tissue + 5 * np.exp(-inside / 5), dtype=np.float32)


def _draw_skull_base(hu: Floats, label: NDArray[np.uint8], here: Slice, head: Head) -> None:
    """Petrous bones, sphenoid, sinuses and orbits of the lowest slices; no bleed is drawn there."""
    low = np.clip((-here.z - 44) / 14, 0, 1)
    if low <= 0:
        return
    x, y = np.abs(here.x), here.y
    petrous = np.abs(y + 18 - 0.55 * (x - 40)) < 7 * low + 1.0 * here.rough
    wing = np.abs(y - 26 - 0.35 * (x - 40)) < 3.5 * low
    bone = (here.inside > 0) & (x > 9) & (petrous | (wing & (x > 16)))
    face = (here.inside > 0) & (y > 32 + 22 * (1 - low))
    hu[face] = 30.0 - 40 * (here.grain[face] > 0.4)
    eyes = np.hypot(x - 32, y - 58) < 12 * low
    hu[face & eyes] = 12.0
    hu[face & (np.abs(np.hypot(x - 32, y - 56) - 17 * low) < 1.8)] = 600.0
    hu[face & (x < 14) & (np.abs(here.folds) < 0.9)] = _AIR_HU
    hu[face & (x < 15) & (np.abs(here.folds) >= 0.9)] = 500.0
    hu[bone] = np.clip(700 + 140 * here.grain[bone], 410, 1190)
    hu[bone & (here.folds > 1.0) & (x > 38)] = -700.0
    label[bone | face] = 0


def _majority(fine_label: NDArray[np.uint8], fine: int) -> NDArray[np.uint8]:
    counts = [pool((fine_label == kind)[None], fine) for kind in BLEEDS]
    background = fine**2 - np.sum(counts, axis=0)
    return np.asarray(np.stack([background, *counts]).argmax(axis=0), dtype=np.uint8)


def _acquire(rng: np.random.Generator, image: Floats, noise_hu: float) -> NDArray[np.int16]:
    """Scanner blur and correlated noise; whole HU, never below -1024."""
    noise = blurred(rng.standard_normal(image.shape, dtype=np.float32), 0.6)
    noise *= noise_hu / max(float(noise.std()), 1e-6)
    seen = np.clip(np.rint(blurred(image, 0.45) + noise), -1024, 3071)
    return np.asarray(seen, dtype=np.int16)
