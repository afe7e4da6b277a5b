"""The whole dataset as slices in memory, and which samples each step reads.

Letters: n slices of all cases of one stream, b batch, f foreground classes, h rows, w columns; in
the batches of a 3-D run (`patches.py`) the spatial axes are (s, h, w) where a name ends in `hw`.
Labels exist for labelled cases only; the type of an unlabelled stream has no place for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Role, UnlabelledCase
from sssflow.contracts.masks import CaseMasks
from sssflow.contracts.model import Preprocessing
from sssflow.errors import DataError
from sssflow.networks.labels import labels_at_network_size
from sssflow.networks.predict import resize_images
from sssflow.training.distributed import ALONE, World
from sssflow.training.mask_trust import case_masks
from sssflow.training.memory import require_memory
from sssflow.training.method_config import SssConfig
from sssflow.training.rare_classes import by_class, slices_showing
from sssflow.volume.intensity import normalise, require_units
from sssflow.volume.packed import read_packed


@dataclass(frozen=True)
class LabelledBatch:
    """Slices or patches with their labels (uint8) and the cases they come from."""

    image_bchw: Tensor
    label_bhw: Tensor
    case_ids: tuple[str, ...]


@dataclass(frozen=True)
class UnlabelledBatch:
    """Slices or patches; SAM-2's soft masks (0 to 1) and the trust in each class, if any."""

    image_bchw: Tensor
    case_ids: tuple[str, ...]
    mask_bfhw: Tensor | None = None
    mask_weight_bf: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """What one step reads."""

    labelled: LabelledBatch
    unlabelled: UnlabelledBatch | None


class Stream(Protocol):
    """Samples of one role in memory; equal `index` and `seed` give equal batches."""

    def __len__(self) -> int:
        """How many samples an epoch has."""
        ...

    def labelled_batch(self, index: Tensor, *, seed: int) -> LabelledBatch:
        """The samples of `index`; `seed` is for whatever is random in reading them."""
        ...

    def unlabelled_batch(self, index: Tensor, *, seed: int) -> UnlabelledBatch:
        """The same without labels."""
        ...


@dataclass(frozen=True)
class Slices:
    """All slices of one stream at network size.

    `foreground_probability` is the share of labelled samples that are replaced by a slice of a
    drawn class, `showing` the slices (on the CPU) of every class that is there.
    """

    image_nchw: Tensor
    case_ids: tuple[str, ...]
    label_nhw: Tensor | None = None
    mask_nfhw: Tensor | None = None
    mask_weight_nf: Tensor | None = None
    foreground_probability: float = 0.0
    showing: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.case_ids)

    def names(self, index: Tensor) -> tuple[str, ...]:
        """Case ids of the chosen slices."""
        return tuple(self.case_ids[i] for i in index.tolist())

    def labelled_batch(self, index: Tensor, *, seed: int) -> LabelledBatch:
        """See `Stream`; random only where slices are chosen by class.

        Raises:
            DataError: The slices have no labels.
        """
        if self.label_nhw is None:
            raise DataError("The labelled stream has no labels.")
        if self.foreground_probability > 0 and self.showing:
            index = by_class(index, self.showing, self.foreground_probability, seed=seed)
        here = index.to(self.label_nhw.device)
        return LabelledBatch(self.image_nchw[here].float(), self.label_nhw[here], self.names(index))

    def unlabelled_batch(self, index: Tensor, *, seed: int) -> UnlabelledBatch:
        """See `Stream`; nothing is random."""
        del seed
        here = index.to(self.image_nchw.device)
        image = self.image_nchw[here].float()
        if self.mask_nfhw is None or self.mask_weight_nf is None:
            return UnlabelledBatch(image, self.names(index))
        mask = self.mask_nfhw[here].float() / 255
        return UnlabelledBatch(image, self.names(index), mask, self.mask_weight_nf[here])

    def to(self, device: torch.device) -> Slices:
        """The same on another device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(
            self,
            image_nchw=self.image_nchw.to(device),
            label_nhw=move(self.label_nhw),
            mask_nfhw=move(self.mask_nfhw),
            mask_weight_nf=move(self.mask_weight_nf),
        )


@dataclass(frozen=True)
class ValidationCase:
    """A volume after the intensity rule and its label, both on the case grid (s,h,w)."""

    case_id: str
    volume_shw: NDArray[np.float32]
    label_shw: NDArray[np.uint8]


@dataclass(frozen=True)
class TrainingData:
    """The streams of a run; `unlabelled` is None for a method that reads none."""

    labelled: Stream
    unlabelled: Stream | None
    validation: tuple[ValidationCase, ...]


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for one purpose; equal arguments give equal seeds on every machine."""
    text = "|".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def batch_indices(count: int, batch: int, step: int, *, seed: int, stream: str) -> Tensor:
    """Sample numbers of step `step`: consecutive windows of an endless row of permutations.

    A closed form of (seed, stream, step): a resumed run reads on where the other would have.
    Every sample is read once before any is read twice.
    """
    chosen = []
    position, end = step * batch, (step + 1) * batch
    while position < end:
        epoch, offset = divmod(position, count)
        generator = torch.Generator().manual_seed(derive_seed(seed, stream, epoch))
        part = torch.randperm(count, generator=generator)[offset : offset + end - position]
        chosen.append(part)
        position += len(part)
    return torch.cat(chosen)


def read_batch(
    data: TrainingData,
    step: int,
    *,
    labelled: int,
    unlabelled: int,
    seed: int,
    world: World = ALONE,
) -> Batch:
    """This process's part of the batch of `step`, on the device that holds the streams.

    `labelled` and `unlabelled` are the sizes of the whole batch.
    """
    names = world.seed_names
    index = batch_indices(len(data.labelled), labelled, step, seed=seed, stream="labelled")
    read_seed = derive_seed(seed, "read", "labelled", step, *names)
    first = data.labelled.labelled_batch(world.part(index), seed=read_seed)
    if data.unlabelled is None:
        return Batch(first, None)
    index = batch_indices(len(data.unlabelled), unlabelled, step, seed=seed, stream="unlabelled")
    read_seed = derive_seed(seed, "read", "unlabelled", step, *names)
    return Batch(first, data.unlabelled.unlabelled_batch(world.part(index), seed=read_seed))


def labelled_cases(manifest: DatasetManifest) -> tuple[LabelledCase, ...]:
    """The cases to learn from.

    Raises:
        DataError: There are none.
    """
    cases = manifest.labelled(Role.LABELLED)
    if not cases:
        raise DataError(
            "The dataset has no labelled case to train on.",
            where=manifest.name,
            action="Give some patients the role `labelled` when packing the data.",
        )
    return cases


def unlabelled_cases(manifest: DatasetManifest) -> tuple[UnlabelledCase, ...]:
    """The cases without labels.

    Raises:
        DataError: There are none.
    """
    cases = tuple(case for case in manifest.cases if isinstance(case, UnlabelledCase))
    if not cases:
        raise DataError(
            "The dataset has no unlabelled case, which this method learns from.",
            where=manifest.name,
            action="Choose the method `supervised`, or give some patients the role `unlabelled`.",
        )
    return cases


def load_labelled(
    manifest: DatasetManifest,
    base: Path,
    preprocessing: Preprocessing,
    *,
    memory_gib: float,
    foreground_probability: float = 0.0,
) -> Slices:
    """Slices and labels of the labelled cases.

    Raises:
        DataError: No labelled case, a changed file, or a label value without a class.
    """
    cases = labelled_cases(manifest)
    _check_memory(cases, preprocessing, memory_gib, bytes_per_pixel=5)
    images, labels, names = [], [], []
    for case in cases:
        images.append(_image(case, base, preprocessing))
        label = torch.from_numpy(read_label(case, base, manifest.class_count))
        labels.append(labels_at_network_size(label, preprocessing, manifest.class_count))
        names += [case.case_id] * len(label)
    label = torch.cat(labels)
    return Slices(
        torch.cat(images),
        tuple(names),
        label_nhw=label,
        foreground_probability=foreground_probability,
        showing=slices_showing(label, manifest.class_count),
    )


def load_unlabelled(
    manifest: DatasetManifest,
    base: Path,
    preprocessing: Preprocessing,
    *,
    memory_gib: float,
    masks: Mapping[str, tuple[CaseMasks, Path]] | None = None,
    trust: SssConfig | None = None,
) -> Slices:
    """Slices of the unlabelled cases, with soft masks where `masks` names the case.

    Args:
        manifest: The dataset.
        base: Its folder.
        preprocessing: Size and intensity rule.
        memory_gib: Largest size in memory.
        masks: Case id to its masks and the folder that their URIs are relative to.
        trust: Which masks are believed; needed with `masks`.

    Raises:
        DataError: No unlabelled case, or a changed file.
    """
    cases = unlabelled_cases(manifest)
    foreground = manifest.class_count - 1
    _check_memory(cases, preprocessing, memory_gib, bytes_per_pixel=4 + foreground * bool(masks))
    images, probabilities, weights, names = [], [], [], []
    for case in cases:
        images.append(_image(case, base, preprocessing))
        names += [case.case_id] * case.grid.shape_shw[0]
        if masks is not None and trust is not None:
            found = masks.get(case.case_id)
            probability, weight = case_masks(case, found, foreground, preprocessing, trust)
            probabilities.append(probability)
            weights.append(weight)
    return Slices(
        torch.cat(images),
        tuple(names),
        mask_nfhw=torch.cat(probabilities) if probabilities else None,
        mask_weight_nf=torch.cat(weights) if weights else None,
    )


def read_label(case: LabelledCase, base: Path, class_count: int) -> NDArray[np.uint8]:
    """The label of a case as uint8 (s,h,w).

    Raises:
        DataError: A changed file, or a value that is not a class.
    """
    label = read_packed(case.label, base=base, shape=case.grid.shape_shw)
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= class_count:
        raise DataError(
            "A label holds a value without a class.",
            where=case.case_id,
            expected=f"0 to {class_count - 1}",
            found=f"{low} to {high}",
            action="Pack the dataset again.",
        )
    return label.astype(np.uint8)


def read_image(
    case: LabelledCase | UnlabelledCase, base: Path, preprocessing: Preprocessing
) -> Tensor:
    """The volume (s,h,w) of a case after the intensity rule, float32.

    Raises:
        DataError: A changed file, or values that are not finite.
        UsageError: An 8-bit image for a rule in its own units.
    """
    require_units(preprocessing.intensity, case.quantised, case.case_id)
    volume = read_packed(case.image, base=base, shape=case.grid.shape_shw)
    image = torch.from_numpy(normalise(volume, preprocessing.intensity))
    if not bool(torch.isfinite(image).all()):
        raise DataError(
            "An image holds values that are not finite.",
            where=case.case_id,
            action="Pack the dataset again; ingest refuses such files.",
        )
    return image


def _image(case: LabelledCase | UnlabelledCase, base: Path, preprocessing: Preprocessing) -> Tensor:
    image = read_image(case, base, preprocessing)[:, None]
    return resize_images(image, preprocessing.size_hw, preprocessing.image_interpolation)


def _check_memory(
    cases: Sequence[LabelledCase | UnlabelledCase],
    preprocessing: Preprocessing,
    memory_gib: float,
    *,
    bytes_per_pixel: int,
) -> None:
    height, width = preprocessing.size_hw
    slices = sum(case.grid.shape_shw[0] for case in cases)
    require_memory(
        slices * height * width * bytes_per_pixel,
        memory_gib,
        what=f"{slices} slices of {height}x{width}",
        remedy="make preprocessing.size_hw smaller",
    )
