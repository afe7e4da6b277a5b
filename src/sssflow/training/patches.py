"""Whole volumes in memory, and the random patches of them that each step of a 3-D run reads.

Letters: b batch, c channels (1), s slices, h rows, w columns, n stored foreground voxels, a axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, UnlabelledCase
from sssflow.contracts.model import PatchRule, Preprocessing
from sssflow.errors import DataError
from sssflow.networks.labels import labels_at_network_size
from sssflow.networks.volumes import Box, Shape, pad_to, resize_volume, scaled_shape
from sssflow.training.data import (
    LabelledBatch,
    UnlabelledBatch,
    derive_seed,
    labelled_cases,
    read_image,
    read_label,
    unlabelled_cases,
)
from sssflow.training.memory import require_memory

_KEPT_VOXELS = 10_000
"""Foreground voxels remembered per class and case, drawn evenly: enough to centre patches on."""


@dataclass(frozen=True)
class Volume:
    """One case at network scale, no side smaller than a patch.

    Attributes:
        image_shw: float32.
        case_id: Whose it is.
        label_shw: uint8; None for an unlabelled case.
        foreground_na: For each class that is there, voxels (s, h, w) of it, on the CPU.
    """

    image_shw: Tensor
    case_id: str
    label_shw: Tensor | None = None
    foreground_na: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Volumes:
    """All volumes of one stream. A sample is a random patch of one of them.

    `foreground_probability` is the share of labelled patches that are centred on a foreground
    voxel (class first, so that small ones come as often), as far as the volume's border allows;
    the others lie anywhere with equal probability.
    """

    volumes: tuple[Volume, ...]
    size_shw: Shape
    foreground_probability: float = 0.0

    def __len__(self) -> int:
        return len(self.volumes)

    def labelled_batch(self, index: Tensor, *, seed: int) -> LabelledBatch:
        """See `data.Stream`.

        Raises:
            DataError: A volume has no label.
        """
        generator = Generator().manual_seed(seed)
        images, labels, names = [], [], []
        for number in index.tolist():
            volume = self.volumes[number]
            if volume.label_shw is None:
                raise DataError("A labelled volume has no label.", where=volume.case_id)
            box = self._box(volume, generator)
            images.append(volume.image_shw[box])
            labels.append(volume.label_shw[box])
            names.append(volume.case_id)
        return LabelledBatch(torch.stack(images)[:, None], torch.stack(labels), tuple(names))

    def unlabelled_batch(self, index: Tensor, *, seed: int) -> UnlabelledBatch:
        """See `data.Stream`."""
        generator = Generator().manual_seed(seed)
        chosen = [self.volumes[number] for number in index.tolist()]
        images = [volume.image_shw[self._box(volume, generator)] for volume in chosen]
        return UnlabelledBatch(torch.stack(images)[:, None], tuple(v.case_id for v in chosen))

    def to(self, device: torch.device) -> Volumes:
        """The same on another device."""
        moved = [
            replace(
                volume,
                image_shw=volume.image_shw.to(device),
                label_shw=None if volume.label_shw is None else volume.label_shw.to(device),
            )
            for volume in self.volumes
        ]
        return replace(self, volumes=tuple(moved))

    def _box(self, volume: Volume, generator: Generator) -> Box:
        """Where the next patch of `volume` lies."""
        room = [
            side - size for side, size in zip(volume.image_shw.shape, self.size_shw, strict=True)
        ]
        start = [_draw(free + 1, generator) for free in room]
        wanted = float(torch.rand((), generator=generator)) < self.foreground_probability
        if wanted and volume.foreground_na:
            of_class = volume.foreground_na[_draw(len(volume.foreground_na), generator)]
            centre = of_class[_draw(len(of_class), generator)].tolist()
            start = [
                min(max(middle - size // 2, 0), free)
                for middle, size, free in zip(centre, self.size_shw, room, strict=True)
            ]
        s, h, w = (
            slice(first, first + size) for first, size in zip(start, self.size_shw, strict=True)
        )
        return s, h, w


def load_labelled_volumes(
    manifest: DatasetManifest,
    base: Path,
    preprocessing: Preprocessing,
    rule: PatchRule,
    *,
    memory_gib: float,
    foreground_probability: float,
) -> Volumes:
    """Volumes and labels of the labelled cases.

    Raises:
        DataError: No labelled case, a changed file, or a label value without a class.
        UsageError: They do not fit into `memory_gib`.
    """
    cases = labelled_cases(manifest)
    _check_memory(cases, rule, memory_gib, bytes_per_voxel=5)
    volumes = []
    for case in cases:
        plain = _volume(case, base, preprocessing, rule)
        label = torch.from_numpy(read_label(case, base, manifest.class_count))
        small = labels_at_network_size(label, preprocessing, manifest.class_count)
        padded, _ = pad_to(small, rule.size_shw)
        found = _foreground(padded, manifest.class_count, case.case_id)
        volumes.append(replace(plain, label_shw=padded, foreground_na=found))
    return Volumes(tuple(volumes), rule.size_shw, foreground_probability)


def load_unlabelled_volumes(
    manifest: DatasetManifest,
    base: Path,
    preprocessing: Preprocessing,
    rule: PatchRule,
    *,
    memory_gib: float,
) -> Volumes:
    """Volumes of the unlabelled cases.

    Raises:
        DataError: No unlabelled case, or a changed file.
        UsageError: They do not fit into `memory_gib`.
    """
    cases = unlabelled_cases(manifest)
    _check_memory(cases, rule, memory_gib, bytes_per_voxel=4)
    volumes = [_volume(case, base, preprocessing, rule) for case in cases]
    return Volumes(tuple(volumes), rule.size_shw)


def _volume(
    case: LabelledCase | UnlabelledCase, base: Path, preprocessing: Preprocessing, rule: PatchRule
) -> Volume:
    image = read_image(case, base, preprocessing)
    shape = scaled_shape(image.shape, rule)
    scaled = resize_volume(image[None, None], shape, preprocessing.image_interpolation)[0, 0]
    padded, _ = pad_to(scaled, rule.size_shw)
    return Volume(padded.contiguous(), case.case_id)


def _foreground(label_shw: Tensor, class_count: int, case_id: str) -> tuple[Tensor, ...]:
    """Up to `_KEPT_VOXELS` voxels of every class that is there, the same on every machine."""
    found = []
    for number in range(1, class_count):
        voxels = (label_shw == number).nonzero()
        if len(voxels) > _KEPT_VOXELS:
            generator = Generator().manual_seed(derive_seed(number, "foreground", case_id))
            voxels = voxels[torch.randperm(len(voxels), generator=generator)[:_KEPT_VOXELS]]
        if len(voxels):
            found.append(voxels)
    return tuple(found)


def _check_memory(
    cases: Sequence[LabelledCase | UnlabelledCase],
    rule: PatchRule,
    memory_gib: float,
    *,
    bytes_per_voxel: int,
) -> None:
    voxels = 0
    for case in cases:
        sides = scaled_shape(case.grid.shape_shw, rule)
        voxels += math.prod(max(pair) for pair in zip(sides, rule.size_shw, strict=True))
    require_memory(
        voxels * bytes_per_voxel,
        memory_gib,
        what=f"{len(cases)} volumes of {voxels} voxels in all",
        remedy="make preprocessing.patch.scale_shw smaller",
    )


def _draw(count: int, generator: Generator) -> int:
    return int(torch.randint(0, count, (), generator=generator))
