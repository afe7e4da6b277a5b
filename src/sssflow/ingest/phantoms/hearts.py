"""Short-axis cine hearts: right ventricle, myocardium and left ventricle at two moments.

The anatomy is a solid: every slice cuts the same heart, whose shape is a function of the height
above the apex. Slices are drawn on a finer grid (in plane and through plane) and averaged, which
gives partial volume; masks are the majority of the same fine grid.

Frame of the anatomy: millimetres from the centre of the left ventricle, `n` towards the septum and
the right ventricle, `t` across it; `u` is the height above the apex over the length of the
ventricle (0 apex, 1 mitral valve).

Shape letters: s slices (basal first), h rows, w columns, k sub-slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sssflow.ingest.phantoms.config import HeartConfig
from sssflow.ingest.phantoms.texture import Floats, bias_field, blurred, pool, rician, smooth_noise
from sssflow.ingest.phantoms.thorax import Looks, Scene, draw_looks, draw_thorax, heart_frame

GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")
"""The five patient groups of ACDC."""

RV, MYOCARDIUM, LV = 1, 2, 3
"""Classes of ACDC masks."""

_FINE = 2  # fine pixels per pixel side
_SUB = 4  # sub-slices per slice
_RV_MIDDLE = 0.8  # centre of the right ventricle, in epicardial radii towards the septum
_RV_HALF = 0.95  # its half-width, in `rv_width`
_TISSUES = ("outside", "rv", "myocardium", "lv", "papillary", "wall", "fat", "vessel")
_OUTSIDE, _RV, _MYO, _LV, _PAPILLARY, _WALL, _FAT, _VESSEL = range(len(_TISSUES))
_LABEL_OF_TISSUE = np.array([0, RV, MYOCARDIUM, LV, LV, 0, 0, 0], dtype=np.uint8)


@dataclass(frozen=True)
class Anatomy:
    """One heart at one moment; lengths in mm, angles in radians about the LV centre."""

    length: float
    cavity: float
    wall: float
    wall_harmonics: tuple[float, float, float]
    shape_harmonics: tuple[float, float, float, float]
    thin_depth: float
    thin_angle: float
    rv_width: float
    rv_reach: float
    rv_bend: float
    rv_apex: float
    rv_top: float
    valve_tilt: tuple[float, float]
    lean: tuple[float, float]
    papillary: tuple[float, float, float]
    vessel_angle: float
    fat: tuple[float, float, float]

    @property
    def epicardium(self) -> float:
        """Outer radius of the left ventricle at the base, mm."""
        return self.cavity + self.wall

    @property
    def rv_edge(self) -> float:
        """Distance of the right ventricular free wall from the LV centre at the base, mm."""
        return _RV_MIDDLE * self.epicardium + _RV_HALF * self.rv_width

    def scaled(self, factor: float) -> Anatomy:
        """The same heart, `factor` times as wide (its length stays)."""
        return replace(
            self,
            cavity=self.cavity * factor,
            wall=self.wall * factor,
            rv_width=self.rv_width * factor,
            rv_bend=self.rv_bend / factor,
        )


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
    ed = _anatomy(rng, group, difficulty)
    scene, ed = _scene(rng, ed, sizes, difficulty)
    es = _contracted(rng, ed, group)
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


_CAVITY_MM = {"NOR": (21, 26), "DCM": (29, 36), "HCM": (16, 21), "MINF": (23, 31), "RV": (18, 23)}
_WALL_MM = {"NOR": (8, 11), "DCM": (6, 8.5), "HCM": (15, 21), "MINF": (7.5, 10), "RV": (7.5, 10)}
_RV_MM = {"NOR": (25, 32), "DCM": (22, 32), "HCM": (20, 27), "MINF": (21, 31), "RV": (36, 46)}
_EJECTION = {
    "NOR": (0.26, 0.36), "DCM": (0.05, 0.12), "HCM": (0.36, 0.46),
    "MINF": (0.10, 0.20), "RV": (0.20, 0.32),
}  # fmt: skip
"""Share of the cavity radius lost at end systole."""


def _anatomy(rng: np.random.Generator, group: str, difficulty: float) -> Anatomy:
    vary = 0.4 + 0.6 * difficulty
    radius = rng.uniform(*_CAVITY_MM[group])
    return Anatomy(
        length=rng.uniform(48, 68),
        cavity=radius,
        wall=rng.uniform(*_WALL_MM[group]),
        wall_harmonics=(
            vary * rng.uniform(-0.15, 0.25),
            vary * rng.uniform(-0.12, 0.12),
            rng.uniform(0, 2 * np.pi),
        ),
        shape_harmonics=(
            vary * rng.uniform(0.0, 0.13),
            rng.uniform(0, 2 * np.pi),
            vary * rng.uniform(0.0, 0.05),
            rng.uniform(0, 2 * np.pi),
        ),
        thin_depth=rng.uniform(0.35, 0.6) if group == "MINF" else 0.0,
        thin_angle=rng.uniform(-np.pi, np.pi),
        rv_width=rng.uniform(*_RV_MM[group]),
        rv_reach=rng.uniform(0.95, 1.2),
        rv_bend=rng.uniform(0.2, 0.5) / (radius + 9),
        rv_apex=rng.uniform(0.1, 0.35),
        rv_top=rng.uniform(0.92, 1.12),
        valve_tilt=(vary * rng.uniform(-0.35, 0.35), vary * rng.uniform(-0.35, 0.35)),
        lean=(vary * rng.uniform(-0.2, 0.2), vary * rng.uniform(-0.2, 0.2)),
        papillary=(rng.uniform(1.0, 1.7), rng.uniform(-2.4, -1.7), rng.uniform(0.14, 0.24)),
        vessel_angle=rng.uniform(-1.2, 1.2),
        fat=tuple(rng.uniform(-0.9, 0.9, size=3)),
    )


def _contracted(rng: np.random.Generator, ed: Anatomy, group: str) -> Anatomy:
    """End systole: the wall keeps its volume, the valves come down, the right side narrows."""
    cavity = ed.cavity * (1 - rng.uniform(*_EJECTION[group]))
    shortening = rng.uniform(0.86, 0.93) if group != "DCM" else rng.uniform(0.94, 0.98)
    area = (ed.epicardium**2 - ed.cavity**2) / shortening
    one, angle, three, angle3 = ed.shape_harmonics
    return replace(
        ed,
        length=ed.length * shortening,
        cavity=cavity,
        wall=float(np.sqrt(cavity**2 + area) - cavity),
        shape_harmonics=(
            one * rng.uniform(0.6, 1.4),
            angle + rng.uniform(-0.4, 0.4),
            three * rng.uniform(0.6, 1.4),
            angle3,
        ),
        rv_width=ed.rv_width * (1 - rng.uniform(0.15, 0.35)),
        rv_reach=ed.rv_reach * rng.uniform(0.88, 0.98),
        rv_top=ed.rv_top,
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
        mask[index][coarse] = _majority(_LABEL_OF_TISSUE[tissue], parts)
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


def tissue_map(heart: Anatomy, n_hw: Floats, t_hw: Floats, u_k: Floats) -> NDArray[np.uint8]:
    """Tissue index (k, h, w) at points (n, t) mm of sub-slices at heights `u_k`."""
    u = u_k[:, None, None]
    rise = (1 - u) * heart.length  # mm below the valve plane
    n = n_hw - heart.lean[0] * (rise - 20)
    t = t_hw - heart.lean[1] * (rise - 20)
    radius = np.sqrt(n * n + t * t) + np.float32(1e-3)
    cos1, sin1 = n / radius, t / radius
    cos2, sin2 = cos1 * cos1 - sin1 * sin1, 2 * cos1 * sin1
    inner, outer = _lv_radii(heart, u, cos1, sin1, cos2, sin2)
    # The ring of muscle is cut askew: at the base one side of it ends before the other, while
    # the cavity is counted up to the valve.
    top = (u + (heart.valve_tilt[0] * n + heart.valve_tilt[1] * t) / heart.length).astype(
        np.float32
    )
    tissue = np.zeros(radius.shape, dtype=np.uint8)
    _draw_right_side(heart, tissue, n, t, u)
    gap = radius - outer
    lobes = cos2 * heart.fat[0] + sin2 * heart.fat[1] + sin1 * heart.fat[2]
    fat = (gap < 5.5 * lobes) & (tissue == 0) & (u > 0.25) & (u < 1.2)
    tissue[fat] = _FAT
    in_wall = gap < 0
    tissue[in_wall] = _WALL
    tissue[in_wall & (np.maximum(top, u) < 1)] = _MYO
    in_cavity = radius < inner
    tissue[in_cavity & (u < 1)] = _LV
    _draw_papillary(heart, tissue, n, t, u, inner)
    _draw_above_valve(heart, tissue, n, t, radius, u)
    return tissue


def _lv_radii(
    heart: Anatomy, u: Floats, cos1: Floats, sin1: Floats, cos2: Floats, sin2: Floats
) -> tuple[Floats, Floats]:
    """Endocardial and epicardial radius (k, h, w) in mm in the direction of each point."""
    down = np.clip(1 - u, 0, None)
    u_inner = np.float32(min(0.85 * heart.wall / heart.length, 0.35))
    profile_outer = np.sqrt(np.clip(1 - down**2.2, 0, None))
    profile_inner = np.sqrt(np.clip(1 - (down / (1 - u_inner)) ** 2.2, 0, None))
    two, angle2, three, angle3 = heart.shape_harmonics
    cos3, sin3 = cos2 * cos1 - sin2 * sin1, sin2 * cos1 + cos2 * sin1
    shape = 1 + two * (cos2 * np.cos(angle2) + sin2 * np.sin(angle2))
    shape += three * (cos3 * np.cos(angle3) + sin3 * np.sin(angle3))
    septal, second, angle = heart.wall_harmonics
    wall = 1 + septal * cos1 + second * (cos2 * np.cos(angle) + sin2 * np.sin(angle))
    toward = cos1 * np.cos(heart.thin_angle) + sin1 * np.sin(heart.thin_angle)
    wall *= 1 - heart.thin_depth * np.exp(3.0 * (toward - 1))
    thick = np.maximum(heart.wall * wall, 3.2)
    inner = heart.cavity * shape * profile_inner
    base_outer = heart.cavity * shape + thick
    return inner.astype(np.float32), (base_outer * profile_outer).astype(np.float32)


def _draw_right_side(
    heart: Anatomy, tissue: NDArray[np.uint8], n: Floats, t: Floats, u: Floats
) -> None:
    """The right ventricle, a bent ellipse behind the septum, and its thin wall."""
    down = np.clip((1 - u) / (1 - heart.rv_apex), 0, None)
    profile = np.sqrt(np.clip(1 - down**2.0, 0, None)) + np.float32(1e-3)
    epicardium = heart.epicardium
    half_n = _RV_HALF * heart.rv_width * profile
    half_t = heart.rv_reach * epicardium * profile
    middle = epicardium * np.sqrt(np.clip(1 - down**2.2, 0, None)) * _RV_MIDDLE
    across = (n - middle + heart.rv_bend * 0.5 * t * t) / half_n
    along = t / half_t
    reach = np.sqrt(across * across + along * along)
    present = (u > heart.rv_apex) & (u < 1.35)
    wall = present & ((reach - 1) * half_n < 3.0)
    tissue[wall] = _WALL
    blood = present & (reach < 1)
    tissue[blood] = _VESSEL
    tissue[blood & (u < heart.rv_top)] = _RV


def _draw_papillary(
    heart: Anatomy, tissue: NDArray[np.uint8], n: Floats, t: Floats, u: Floats, inner: Floats
) -> None:
    """Two muscles in the cavity between apex and mid height; masks count them as cavity."""
    first, second, size = heart.papillary
    present = (u > 0.2) & (u < 0.68)
    for angle in (first, second):
        along = inner * 0.66
        square = (n - along * np.cos(angle)) ** 2 + (t - along * np.sin(angle)) ** 2
        tissue[present & (square < (size * inner) ** 2) & (tissue == _LV)] = _PAPILLARY


def _draw_above_valve(
    heart: Anatomy,
    tissue: NDArray[np.uint8],
    n: Floats,
    t: Floats,
    radius: Floats,
    u: Floats,
) -> None:
    """Left atrium and aortic root: as bright as the cavity, and not part of any class."""
    above = (u >= 1) & (tissue != _RV)
    atrium = heart.epicardium * 0.85 * (1.15 - 0.5 * np.clip(u - 1, 0, 0.8))
    tissue[above & (radius < atrium + 2.5)] = _WALL
    tissue[above & (radius < atrium)] = _VESSEL
    angle = heart.vessel_angle
    square = (n - 0.75 * heart.epicardium * np.cos(angle)) ** 2
    square = square + (t - 0.75 * heart.epicardium * np.sin(angle)) ** 2
    tissue[above & (square < 13.0**2)] = _WALL
    tissue[above & (square < 11.0**2)] = _VESSEL


def _acquire(rng: np.random.Generator, signal: Floats, looks: Looks) -> NDArray[np.int16]:
    """Blur, gain drift between slices, noise, gamma and scanner scale; int16 from 0 up."""
    gain = np.exp(0.05 * rng.standard_normal(signal.shape[0])).astype(np.float32)
    seen = rician(rng, blurred(signal, looks.blur_px) * gain[:, None, None], looks.noise)
    scaled = looks.scale * np.power(blurred(seen, 0.4), np.float32(looks.gamma))
    return np.clip(np.rint(scaled), 0, 32000).astype(np.int16)
