"""Bleeds in a head: where they are and what shape they have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sssflow.ingest.phantoms.texture import Floats

EDH, IPH, IVH, SAH, SDH = 1, 2, 3, 4, 5
"""Classes of BHSD masks: epidural, intraparenchymal, intraventricular, subarachnoid, subdural."""

BLEEDS = (EDH, IPH, IVH, SAH, SDH)


@dataclass(frozen=True)
class Bleed:
    """One bleed; lengths in mm.

    Attributes:
        kind: Class 1..5.
        angle: Direction from the middle of the brain in the axial plane, radians from the left.
        z: Height of its middle.
        extent: Reach along the skull or through the tissue.
        thick: Greatest thickness, or the radius of a blob.
        away: Distance of a blob from the middle of the brain.
        hu: Value of its blood.
    """

    kind: int
    angle: float
    z: float
    extent: float
    thick: float
    away: float
    hu: float


def choose_bleeds(
    rng: np.random.Generator, count_range: tuple[int, int], first: int, difficulty: float
) -> tuple[Bleed, ...]:
    """Draw the bleeds of one scan; the first is of class `first`, the others of any class."""
    count = int(rng.integers(*count_range, endpoint=True))
    kinds = [first, *rng.choice(BLEEDS, size=count - 1).tolist()]
    return tuple(_choose(rng, int(kind), difficulty) for kind in kinds)


_EXTENT_MM = {EDH: (22, 36), IPH: (0, 1), IVH: (0, 1), SAH: (22, 42), SDH: (45, 80)}
_THICK_MM = {EDH: (10, 22), IPH: (6, 22), IVH: (0.3, 1.0), SAH: (1.8, 3.2), SDH: (4, 11)}


def _choose(rng: np.random.Generator, kind: int, difficulty: float) -> Bleed:
    side = np.pi if rng.random() < 0.5 else 0.0
    low, high = _THICK_MM[kind]
    # Harder means smaller: the size leans towards the lower end of its range.
    thick = low + (high - low) * rng.random() ** (0.6 + difficulty)
    return Bleed(
        kind=kind,
        angle=side + rng.uniform(-1.0, 1.0),
        z=rng.uniform(-12, 32) if kind != IVH else rng.uniform(0, 12),
        extent=rng.uniform(*_EXTENT_MM[kind]),
        thick=thick,
        away=rng.uniform(18, 48),
        hu=rng.uniform(60 - 4 * difficulty, 78 - 8 * difficulty),
    )


def bleed_shape(
    bleed: Bleed,
    x: Floats,
    y: Floats,
    z: float,
    inside: Floats,
    ventricle: Floats,
    folds: Floats,
    rough: Floats,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels of the bleed and of the swelling around it, in one slice at height `z`.

    Args:
        bleed: Which bleed.
        x: Distance to the left of the middle, mm, (h, w).
        y: Distance to the front of the middle, mm, (h, w).
        z: Height above the middle, mm.
        inside: Depth below the inner table of the skull, mm, (h, w).
        ventricle: Distance to the ventricles, mm, negative inside, (h, w).
        folds: Field whose zero lines are the furrows of the brain, (h, w).
        rough: Field of mean 0 and deviation 1 that roughens outlines, (h, w).
    """
    nothing = np.zeros(x.shape, dtype=np.bool_)
    if bleed.kind == IVH:
        # Blood sinks to the back of the ventricles and fills them up to a level.
        level = bleed.thick * 45 - 40
        return (ventricle < 0) & (y < level + 2 * rough) & (inside > 3), nothing
    if bleed.kind == IPH:
        return _blob(bleed, x, y, z, inside, ventricle, rough)
    along = _along_skull(bleed, x, y, z)
    share = np.clip(1 - (along / bleed.extent) ** 2, 0, None)
    if bleed.kind == EDH:
        return inside < bleed.thick * share - 0.3, nothing
    if bleed.kind == SDH:
        thick = bleed.thick * np.sqrt(share) * (1 + 0.12 * rough)
        return (inside < thick) & (share > 0) & (thick > 1.2), nothing
    near = share > 0.08 * (1 + rough)
    furrow = (np.abs(folds) < 0.11 * bleed.thick * np.clip(1.5 - inside / 16, 0, 1)) & (inside < 20)
    film = inside < 0.55 * bleed.thick
    return near & (furrow | film), nothing


def _along_skull(bleed: Bleed, x: Floats, y: Floats, z: float) -> Floats:
    """Distance in mm from the bleed's middle, measured along the skull."""
    turn = np.arctan2(y, x) - np.float32(bleed.angle)
    turn = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    # Extra-axial blood reaches less far up and down than around.
    return np.asarray(np.hypot(turn * 72, 1.4 * (z - bleed.z)), dtype=np.float32)


def _blob(
    bleed: Bleed, x: Floats, y: Floats, z: float, inside: Floats, ventricle: Floats, rough: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A rough ellipsoid in the tissue, and a rim of swelling."""
    dx = x - bleed.away * np.cos(bleed.angle)
    dy = y - 1.15 * bleed.away * np.sin(bleed.angle)
    far = np.sqrt(dx * dx + (dy * (0.75 + 0.25 * bleed.extent)) ** 2 + (z - bleed.z) ** 2)
    outline = bleed.thick * (1 + 0.16 * rough)
    room = (inside > 4) & (ventricle > 0)
    blob = (far < outline) & room
    return blob, (far < outline + 2 + 0.2 * bleed.thick) & room & ~blob
