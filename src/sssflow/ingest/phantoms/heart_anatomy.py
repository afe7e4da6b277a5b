"""The solid heart: its measures at two moments, and the tissue at any point of it.

Frame: millimetres from the centre of the left ventricle, `n` towards the septum and the right
ventricle, `t` across it; `u` is the height above the apex over the length of the ventricle
(0 apex, 1 mitral valve).

Shape letters: h rows, w columns, k sub-slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sssflow.ingest.phantoms.texture import Floats

GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")
"""The five patient groups of ACDC."""

RV, MYOCARDIUM, LV = 1, 2, 3
"""Classes of ACDC masks."""

_RV_MIDDLE = 0.8  # centre of the right ventricle, in epicardial radii towards the septum
_RV_HALF = 0.95  # its half-width, in `rv_width`
_TISSUES = ("outside", "rv", "myocardium", "lv", "papillary", "wall", "fat", "vessel")
_OUTSIDE, _RV, _MYO, _LV, _PAPILLARY, _WALL, _FAT, _VESSEL = range(len(_TISSUES))
LABEL_OF_TISSUE = np.array([0, RV, MYOCARDIUM, LV, LV, 0, 0, 0], dtype=np.uint8)


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


_CAVITY_MM = {"NOR": (21, 26), "DCM": (29, 36), "HCM": (16, 21), "MINF": (23, 31), "RV": (18, 23)}
_WALL_MM = {"NOR": (8, 11), "DCM": (6, 8.5), "HCM": (15, 21), "MINF": (7.5, 10), "RV": (7.5, 10)}
_RV_MM = {"NOR": (25, 32), "DCM": (22, 32), "HCM": (20, 27), "MINF": (21, 31), "RV": (36, 46)}
_EJECTION = {
    "NOR": (0.26, 0.36), "DCM": (0.05, 0.12), "HCM": (0.36, 0.46),
    "MINF": (0.10, 0.20), "RV": (0.20, 0.32),
}  # fmt: skip
"""Share of the cavity radius lost at end systole."""


def draw_anatomy(rng: np.random.Generator, group: str, difficulty: float) -> Anatomy:
    """One heart of `group` at end diastole; with `difficulty` shapes leave the plain one."""
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


def contracted(rng: np.random.Generator, ed: Anatomy, group: str) -> Anatomy:
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
