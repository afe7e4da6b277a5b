"""Where the scenes of the pre-training come from: procedural shapes, and labelled cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.dataset import (
    DatasetManifest,
    LabelledCase,
    Modality,
    Role,
    UnlabelledCase,
)
from sssflow.contracts.model import IntensityRule
from sssflow.errors import DataError, UsageError
from sssflow.sam.scenes import Scene, draw_scene
from sssflow.sam.shapes import Floats, Random, linear_matrix
from sssflow.storage.contracts import load_contract
from sssflow.volume.intensity import normalise, require_units
from sssflow.volume.packed import read_packed


class SceneSource(Protocol):
    """Draws training scenes; `description` goes into the provenance of the weights."""

    @property
    def description(self) -> str:
        """What the scenes are, in words."""

    def draw(self, rng: Random, *, size: int, length: int) -> Scene:
        """A clip of `length` slices of `size` x `size` pixels, objects present on the first."""


@dataclass(frozen=True)
class ShapeSource:
    """Procedural shapes only."""

    description: str = "procedural shapes"

    def draw(self, rng: Random, *, size: int, length: int) -> Scene:
        """See `SceneSource`."""
        return draw_scene(rng, size=size, length=length)


@dataclass(frozen=True)
class LabelledSource:
    """Labelled volumes, cropped at random around an object, mixed with procedural shapes.

    Attributes:
        cases: Image in [0, 1] and label, both (s, h, w).
        share: Share of scenes from the volumes.
        description: For the provenance.
    """

    cases: tuple[tuple[Floats, NDArray[np.integer]], ...]
    share: float
    description: str

    def draw(self, rng: Random, *, size: int, length: int) -> Scene:
        """See `SceneSource`. A volume that gives no clip is replaced by a procedural scene."""
        if rng.uniform() < self.share:
            scene = self._from_volume(rng, size, length)
            if scene is not None:
                return scene
        return draw_scene(rng, size=size, length=length)

    def _from_volume(self, rng: Random, size: int, length: int) -> Scene | None:
        image, label = self.cases[int(rng.integers(len(self.cases)))]
        if rng.uniform() < 0.5:
            image, label = image[::-1], label[::-1]
        filled = np.flatnonzero(label.reshape(len(label), -1).any(axis=1))
        filled = filled[filled <= len(label) - length]
        if not len(filled):
            return None
        first = int(rng.choice(filled))
        rows, columns = _random_crop(rng, label[first])
        part = image[first : first + length, rows[0] : rows[1], columns[0] : columns[1]]
        marks = label[first : first + length, rows[0] : rows[1], columns[0] : columns[1]]
        down = linear_matrix(size, part.shape[1]), linear_matrix(size, part.shape[2])
        masks = [
            (down[0] @ (marks == k).astype(np.float32) @ down[1].T) >= 0.5
            for k in np.unique(marks[0])
            if k != 0
        ]
        kept = [m for m in masks if m[0].sum() >= 12]
        if not kept:
            return None
        grey = (down[0] @ part @ down[1].T).astype(np.float32)
        flips = tuple(axis for axis in (1, 2) if rng.uniform() < 0.5)
        stacked = np.flip(np.stack(kept), tuple(a + 1 for a in flips))
        return Scene(np.ascontiguousarray(np.flip(grey, flips)), np.ascontiguousarray(stacked))


def labelled_source(
    manifest_path: Path, share: float, intensity: IntensityRule | None = None
) -> LabelledSource:
    """Read the labelled training cases of a dataset; no other role is touched.

    Args:
        manifest_path: Path of manifest.json.
        share: Of scenes from the volumes; the others are procedural.
        intensity: How voxel values become grey values; None: `intensity_rule`'s choice.

    Raises:
        DataError: The manifest or a file cannot be read, or there is no labelled case.
        UsageError: See `grey_volume`.
    """
    manifest = load_contract(DatasetManifest, manifest_path)
    cases = manifest.labelled(Role.LABELLED)
    if not cases:
        raise DataError("The dataset has no labelled training case.", where=manifest_path)
    read = tuple(_read(case, manifest_path.parent, intensity) for case in cases)
    description = f"procedural shapes and {len(read)} labelled cases of {manifest.digest[:12]}"
    if intensity is not None:
        description += f", intensity {intensity.kind}"
    return LabelledSource(read, share, description)


def intensity_rule(modality: Modality, given: IntensityRule | None) -> IntensityRule:
    """The rule of the configuration, else percentiles for MR and the brain window for CT."""
    if given is not None:
        return given
    return IntensityRule(kind="window") if modality is Modality.CT else IntensityRule()


def grey_volume(
    case: LabelledCase | UnlabelledCase, base: Path, given: IntensityRule | None
) -> Floats:
    """The image of a case as SAM-2 reads it: (s, h, w), values in [0, 1].

    Args:
        case: Its label is not read.
        base: Folder of the manifest.
        given: How voxel values become grey values; None: `intensity_rule`'s choice.

    Raises:
        DataError: The file is missing or changed.
        UsageError: An 8-bit image that the rule cannot read, or values beyond [0, 1].
    """
    rule = intensity_rule(case.modality, given)
    require_units(rule, case.quantised, case.case_id)
    volume = normalise(read_packed(case.image, base=base, shape=case.grid.shape_shw), rule)
    low, high = float(volume.min()), float(volume.max())
    if low < 0 or high > 1:
        raise UsageError(
            "The intensity rule gives SAM-2 values that it does not know.",
            where=f"sam.intensity, {case.case_id}",
            expected="grey values of 0 to 1",
            found=f"{low:g} to {high:g} by the rule {rule.kind}",
            action="Use the rule percentile, minmax or window.",
        )
    return volume


def _read(
    case: LabelledCase, base: Path, intensity: IntensityRule | None
) -> tuple[Floats, NDArray[np.integer]]:
    label = read_packed(case.label, base=base, shape=case.grid.shape_shw)
    return grey_volume(case, base, intensity), label.astype(np.int64)


def _random_crop(
    rng: Random, label_yx: NDArray[np.integer]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of a square-like window around everything labelled on the slice."""
    ys, xs = np.nonzero(label_yx)
    longest = max(int(np.ptp(ys)), int(np.ptp(xs))) + 1
    side = max(32, round(longest * rng.uniform(1.1, 2.6)))
    return _span(rng, ys, side, label_yx.shape[0]), _span(rng, xs, side, label_yx.shape[1])


def _span(rng: Random, at: NDArray[np.intp], side: int, limit: int) -> tuple[int, int]:
    side = min(side, limit)
    low, high = max(0, int(at.max()) + 1 - side), min(int(at.min()), limit - side)
    start = int(rng.integers(low, high + 1)) if low <= high else max(0, min(low, limit - side))
    return start, start + side
