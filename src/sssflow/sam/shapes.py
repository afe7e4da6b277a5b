"""Procedural objects in three dimensions: implicit fields on stacks of slices.

A field is positive inside the object and grows by about one per pixel of depth. Shapes are those
of medical slices in general (discs, rings, crescents that hug a disc, lenses along a shell, blobs,
bands, polygons), not of one organ. Every draw comes from the generator that is passed in.

Letters: t slices of a clip, y rows, x columns. Lengths are pixels of a square of side `size`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Random = np.random.Generator


@dataclass(frozen=True)
class Canvas:
    """Pixel centres of a clip.

    Attributes:
        size: Side of a slice in pixels.
        length: Number of slices.
        y_yx, x_yx: Coordinates of the pixel centres.
    """

    size: int
    length: int
    y_yx: Floats = field(init=False)
    x_yx: Floats = field(init=False)

    def __post_init__(self) -> None:
        axis = np.arange(self.size, dtype=np.float32) + np.float32(0.5)
        object.__setattr__(self, "y_yx", np.repeat(axis[:, None], self.size, axis=1))
        object.__setattr__(self, "x_yx", np.repeat(axis[None, :], self.size, axis=0))


@dataclass(frozen=True)
class Disc:
    """A star-shaped outline per slice: a squeezed, turned, wavy circle that drifts and tapers.

    Attributes:
        centre_t2: Centre (x, y) per slice.
        scale_t: Radius factor per slice; 0 or less: absent on that slice.
        radius: Mean radius at factor 1.
        stretch: Ratio of the axes.
        angle: Turn of the long axis.
        waves_k: Amplitude of the waves with 2, 3, 4, 5 periods, as shares of the radius.
        phases_tk: Phase of each wave per slice.
    """

    centre_t2: Floats
    scale_t: Floats
    radius: float
    stretch: float
    angle: float
    waves_k: Floats
    phases_tk: Floats

    def field(self, canvas: Canvas, *, factor: float = 1.0, grow: float = 0.0) -> Floats:
        """(t, y, x): positive inside; radius times `factor`, plus `grow` pixels."""
        out = np.empty((canvas.length, canvas.size, canvas.size), np.float32)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        periods = np.arange(2, 2 + len(self.waves_k))
        for t in range(canvas.length):
            radius = self.radius * float(self.scale_t[t]) * factor
            if radius <= 0:
                out[t] = -np.float32(canvas.size)
                continue
            dx = canvas.x_yx - self.centre_t2[t, 0]
            dy = canvas.y_yx - self.centre_t2[t, 1]
            u = (cos * dx + sin * dy) / np.float32(np.sqrt(self.stretch))
            v = (cos * dy - sin * dx) * np.float32(np.sqrt(self.stretch))
            outline = np.float32(1.0)
            if np.any(self.waves_k):
                theta = np.arctan2(v, u)
                outline = 1 + sum(
                    a * np.cos(k * theta + p)
                    for a, k, p in zip(self.waves_k, periods, self.phases_tk[t], strict=True)
                )
            out[t] = radius * outline + grow - np.sqrt(u * u + v * v)
        return out


def random_disc(
    rng: Random,
    canvas: Canvas,
    radius: tuple[float, float],
    *,
    centre: tuple[float, float] | None = None,
    waviness: float = 1.0,
    stretch: float = 1.8,
    taper: Floats | None = None,
) -> Disc:
    """A disc whose radius is drawn from `radius` (shares of the side), log-uniform."""
    size, length = canvas.size, canvas.length
    mean = size * float(np.exp(rng.uniform(np.log(radius[0]), np.log(radius[1]))))
    start = rng.uniform(0.2, 0.8, 2) * size if centre is None else np.asarray(centre)
    drift = rng.normal(0, 0.06 * mean, (length, 2)) + rng.normal(0, 0.1 * mean, 2)
    drift[0] = 0
    waves = waviness * rng.uniform(0, 1, 4) * np.array([0.12, 0.1, 0.06, 0.04])
    phases = rng.uniform(0, 2 * np.pi, 4) + np.cumsum(rng.normal(0, 0.25, (length, 4)), axis=0)
    return Disc(
        centre_t2=(start + np.cumsum(drift, axis=0)).astype(np.float32),
        scale_t=random_taper(rng, length) if taper is None else taper,
        radius=mean,
        stretch=float(rng.uniform(1, stretch)),
        angle=float(rng.uniform(0, np.pi)),
        waves_k=waves.astype(np.float32) * np.float32(rng.uniform() < 0.7),
        phases_tk=phases.astype(np.float32),
    )


def random_taper(rng: Random, length: int) -> Floats:
    """Radius factor per slice: constant, drifting, or closing towards one end until it vanishes."""
    t = np.arange(length, dtype=np.float32)
    kind = rng.integers(0, 4)
    wobble = np.exp(np.cumsum(rng.normal(0, 0.06, length)))
    if kind == 0 or length == 1:
        factor = wobble
    elif kind == 1:
        factor = wobble * np.exp(-rng.uniform(-0.25, 0.35) * t)
    else:
        # An ellipsoid cut by the slices: its end lies inside or just beyond the clip.
        end = rng.uniform(1.0, 1.6 * length)
        factor = wobble * np.sqrt(np.clip(1 - (t / end) ** 2, 0, None))
        factor = np.where(factor < 0.22, 0, factor)
    if kind == 3 and length > 1 and rng.uniform() < 0.3:
        factor[rng.integers(1, length) :] = 0  # gone from one slice to the next
    return factor.astype(np.float32)


def blob_field(rng: Random, canvas: Canvas) -> Floats:
    """A lump of smooth noise kept together by a round hill; may be in several pieces."""
    disc = random_disc(rng, canvas, (0.06, 0.25), waviness=0.5)
    cells = int(rng.integers(5, 14))
    noise = smooth_noise(rng, canvas, cells, depth=max(2, canvas.length // 2))
    return disc.field(canvas, factor=1.1) + noise * np.float32(disc.radius * rng.uniform(0.3, 0.8))


def polygon_field(rng: Random, canvas: Canvas) -> Floats:
    """A convex polygon of three to seven sides."""
    sides = int(rng.integers(3, 8))
    disc = random_disc(rng, canvas, (0.05, 0.25))
    angles = (
        np.sort(rng.uniform(0, 2 * np.pi / sides, sides)) + np.arange(sides) * 2 * np.pi / sides
    )
    reach = disc.radius * rng.uniform(0.6, 1.1, sides)
    out = np.empty((canvas.length, canvas.size, canvas.size), np.float32)
    for t in range(canvas.length):
        scale = float(disc.scale_t[t])
        dx = canvas.x_yx - disc.centre_t2[t, 0]
        dy = canvas.y_yx - disc.centre_t2[t, 1]
        planes = [
            r * scale - (np.cos(a) * dx + np.sin(a) * dy)
            for a, r in zip(angles, reach, strict=True)
        ]
        out[t] = np.minimum.reduce(planes) if scale > 0 else -np.float32(canvas.size)
    return out


def band_field(rng: Random, canvas: Canvas) -> Floats:
    """A thin curved band: a stretch of a circle's outline."""
    disc = random_disc(rng, canvas, (0.1, 0.4), waviness=0.6)
    width = canvas.size * rng.uniform(0.012, 0.05)
    ring = width - np.abs(disc.field(canvas))
    turn = rng.uniform(0, 2 * np.pi)
    offset = rng.uniform(-0.6, 0.7) * disc.radius
    dx = canvas.x_yx[None] - disc.centre_t2[:, 0, None, None]
    dy = canvas.y_yx[None] - disc.centre_t2[:, 1, None, None]
    side = np.cos(turn) * dx + np.sin(turn) * dy - offset
    return np.asarray(np.minimum(ring, side), dtype=np.float32)


def ring_group(rng: Random, canvas: Canvas) -> tuple[Floats, Floats, Floats]:
    """A cavity, the wall around it, and a crescent that hugs the wall: three fields.

    The wall is what lies between two outlines; its thickness goes from a line to most of the
    disc. The crescent is the part of a second disc that the first leaves free.
    """
    outer = random_disc(rng, canvas, (0.1, 0.34), waviness=0.6, stretch=1.4)
    share = float(rng.uniform(0.35, 0.88))
    shift = (rng.normal(0, 0.04, 2) * outer.radius).astype(np.float32)
    inner_scale = outer.scale_t * np.clip(1 + rng.normal(0, 0.05, canvas.length), 0.8, 1.08)
    if rng.uniform() < 0.35:
        inner_scale[rng.integers(0, canvas.length) :] *= rng.choice([0.0, 0.6])
    inner = Disc(
        centre_t2=outer.centre_t2 + shift,
        scale_t=inner_scale.astype(np.float32),
        radius=outer.radius * share,
        stretch=outer.stretch * float(rng.uniform(0.9, 1.1)),
        angle=outer.angle,
        waves_k=outer.waves_k * np.float32(rng.uniform(0, 1.5)),
        phases_tk=outer.phases_tk,
    )
    whole = outer.field(canvas)
    cavity = np.minimum(inner.field(canvas), whole - np.float32(1.0))
    wall = np.minimum(whole, -cavity)
    return cavity, wall, _hugging_crescent(rng, canvas, outer, whole)


def _hugging_crescent(rng: Random, canvas: Canvas, disc: Disc, whole: Floats) -> Floats:
    turn = rng.uniform(0, 2 * np.pi)
    distance = disc.radius * rng.uniform(0.5, 1.25)
    offset = np.array([np.cos(turn), np.sin(turn)]) * distance
    other = random_disc(rng, canvas, (0.1, 0.2), waviness=0.8, stretch=2.0)
    factor = disc.radius / other.radius * rng.uniform(0.7, 1.25)
    scale = other.scale_t * (disc.scale_t > 0)
    second = Disc(
        centre_t2=(disc.centre_t2 + offset).astype(np.float32),
        scale_t=scale.astype(np.float32),
        radius=other.radius * factor,
        stretch=other.stretch,
        angle=float(turn + np.pi / 2 + rng.normal(0, 0.3)),
        waves_k=other.waves_k,
        phases_tk=other.phases_tk,
    )
    gap = float(rng.choice([0.0, 0.0, rng.uniform(0.5, 0.03 * canvas.size)]))
    return np.asarray(np.minimum(second.field(canvas), -whole - np.float32(gap)), dtype=np.float32)


def shell_group(rng: Random, canvas: Canvas) -> tuple[Floats, Floats, list[Floats]]:
    """A large shell, its inside, and lenses or crescents along the inner border."""
    centre = tuple(rng.uniform(0.4, 0.6, 2) * canvas.size)
    steady = np.exp(np.cumsum(rng.normal(0, 0.02, canvas.length))).astype(np.float32)
    radius = (0.34, 0.75)
    outer = random_disc(
        rng, canvas, radius, centre=centre, waviness=0.3, stretch=1.35, taper=steady
    )
    whole = outer.field(canvas)
    thickness = canvas.size * float(rng.uniform(0.01, 0.06))
    inside = whole - np.float32(thickness)
    pieces = []
    for _ in range(int(rng.integers(1, 4))):
        turn = rng.uniform(0, 2 * np.pi)
        direction = np.array([np.cos(turn), np.sin(turn)])
        if rng.uniform() < 0.5:  # lens: a disc whose centre lies on the border
            at = outer.centre_t2[0] + direction * outer.radius * rng.uniform(0.75, 1.0)
            lens = random_disc(rng, canvas, (0.05, 0.2), centre=(float(at[0]), float(at[1])))
            pieces.append(np.minimum(lens.field(canvas), inside))
        else:  # crescent: what a shifted copy of the inside leaves free
            depth = outer.radius * rng.uniform(0.08, 0.3)
            moved = Disc(
                (outer.centre_t2 - direction * depth).astype(np.float32),
                outer.scale_t,
                outer.radius,
                outer.stretch,
                outer.angle,
                outer.waves_k,
                outer.phases_tk,
            )
            left = -(moved.field(canvas) - np.float32(thickness))
            limit = random_disc(rng, canvas, (0.3, 0.6), centre=_along(outer, direction))
            pieces.append(np.minimum(np.minimum(left, inside), limit.field(canvas)))
    return np.minimum(whole, -inside), inside, pieces


def _along(disc: Disc, direction: NDArray[np.float64]) -> tuple[float, float]:
    at = disc.centre_t2[0] + direction * disc.radius
    return float(at[0]), float(at[1])


def smooth_noise(rng: Random, canvas: Canvas, cells: int, *, depth: int = 2) -> Floats:
    """(t, y, x) Gaussian noise of unit variance on `cells` x `cells` knots, linear in between."""
    knots = rng.standard_normal((depth, cells, cells)).astype(np.float32)
    across = linear_matrix(canvas.size, cells)
    along = linear_matrix(canvas.length, depth)
    plane = across @ knots @ across.T
    return np.tensordot(along, plane, axes=(1, 0)).astype(np.float32)


def linear_matrix(n_out: int, n_in: int) -> Floats:
    """(n_out, n_in): resampling of a line of samples; averages where it makes smaller.

    Samples lie at pixel centres, so that a mirrored line gives the mirrored result.
    """
    centres = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    reach = max(1.0, n_in / n_out)
    clamped = np.clip(centres, 0, n_in - 1)[:, None]
    weight = np.clip(1 - np.abs(clamped - np.arange(n_in)[None]) / reach, 0, None)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True), dtype=np.float32)
