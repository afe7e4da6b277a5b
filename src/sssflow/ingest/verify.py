"""Checks of one case and of all cases together. Nothing is repaired silently."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.base import Sha256
from sssflow.contracts.dataset import Grid, Role
from sssflow.errors import DataError
from sssflow.ingest.config import IngestConfig
from sssflow.ingest.layouts.base import VolumeSource
from sssflow.ingest.split import AssignedCase
from sssflow.volume.geometry import Volume, largest_corner_distance_mm
from sssflow.volume.intensity import require_finite

Array = NDArray[np.generic]


@dataclass(frozen=True)
class CheckedCase:
    """A case whose voxels passed every check.

    Attributes:
        image_shw: As stored: integers, or float32.
        label_shw: uint8 classes; None for an unlabelled case.
        sform_set_aside: See `Volume`.
    """

    image_shw: Array
    label_shw: NDArray[np.uint8] | None
    grid: Grid
    sform_set_aside: bool = False


@dataclass(frozen=True)
class CaseFacts:
    """What stays of a case after its voxels left memory.

    Attributes:
        content: Digest of image, mask (if the role permits one) and grid.
        image_values: Digest of the sorted image values: equal for flipped or turned copies.
        voxels_per_class: Counts by class; empty without a mask.
        sform_set_aside: See `Volume`.
    """

    case_id: str
    patient_id: str
    role: Role
    content: Sha256
    image_values: Sha256
    grid: Grid
    voxels_per_class: tuple[int, ...]
    sform_set_aside: bool = False


def check_case(
    case: AssignedCase, class_count: int, config: IngestConfig
) -> tuple[CheckedCase | None, list[DataError]]:
    """Read a case and check it; every problem of it is returned, each naming the case.

    A mask is opened only if the case still has one, that is, never for an unlabelled case.
    """
    problems: list[DataError] = []
    image = _read(case.source.image, config, problems)
    label = None if case.source.label is None else _read(case.source.label, config, problems)
    if image is not None:
        problems.extend(_image_problems(image, case.source.image.where))
    if label is not None and case.source.label is not None:
        problems.extend(_label_problems(label, case.source.label.where, class_count))
        if image is not None:
            problems.extend(_pair_problems(image, label, case.source.label.where, config))
    if problems or image is None:
        return None, [_named(problem, case.source.case_id) for problem in problems]
    label_shw = None if label is None else label.array_shw.astype(np.uint8)
    array_shw = _packable(image.array_shw)
    return CheckedCase(array_shw, label_shw, image.grid, image.sform_set_aside), []


def facts_of(case: AssignedCase, checked: CheckedCase, class_count: int) -> CaseFacts:
    """Digests and counts of a checked case."""
    label = checked.label_shw
    counts = () if label is None else np.bincount(label.ravel(), minlength=class_count).tolist()
    content = hashlib.sha256(checked.grid.model_dump_json().encode())
    for array in (checked.image_shw, label):
        if array is not None:
            content.update(f"|{array.dtype.str}{array.shape}|".encode())
            content.update(np.ascontiguousarray(array).data)
    values = hashlib.sha256(f"{sorted(checked.image_shw.shape)}".encode())
    values.update(np.sort(checked.image_shw, axis=None).data)
    return CaseFacts(
        case_id=case.source.case_id,
        patient_id=case.source.patient_id,
        role=case.role,
        content=content.hexdigest(),
        image_values=values.hexdigest(),
        grid=checked.grid,
        voxels_per_class=tuple(counts),
        sform_set_aside=checked.sform_set_aside,
    )


def copies_under_two_patients(facts: Sequence[CaseFacts]) -> list[tuple[CaseFacts, ...]]:
    """Groups of cases with the same image (or a flipped or turned copy) under several patients."""
    by_values: dict[Sha256, list[CaseFacts]] = defaultdict(list)
    for fact in facts:
        by_values[fact.image_values].append(fact)
    groups = (tuple(same) for same in by_values.values())
    return [same for same in groups if len({fact.patient_id for fact in same}) > 1]


def copy_problem(same: Sequence[CaseFacts]) -> DataError:
    """The message for one group of copies."""
    return DataError(
        "The same image is there under different patients.",
        where=", ".join(fact.case_id for fact in same[:6]),
        expected="one role for all copies of an image; else every score is flattered",
        found=", ".join(f"{fact.patient_id} is {fact.role}" for fact in same[:6]),
        action="Remove the copy, or give the patients the same role; "
        "`copies: note` accepts it if it is meant.",
    )


def must_refuse(same: Sequence[CaseFacts], config: IngestConfig) -> bool:
    """Whether a group of copies stops the run, by the setting `copies`."""
    if config.copies == "refuse":
        return True
    return config.copies == "refuse_across_roles" and len({fact.role for fact in same}) > 1


def source_digest(facts: Sequence[CaseFacts]) -> Sha256:
    """Digest over the content of all cases, in id order.

    It is over voxels and geometry, not over files: an HDF5 file holds image and mask together, and
    the mask of an unlabelled case must not even be hashed.
    """
    digest = hashlib.sha256()
    for fact in sorted(facts, key=lambda f: f.case_id):
        digest.update(f"{fact.case_id}|{fact.patient_id}|{fact.content}\n".encode())
    return digest.hexdigest()


def _read(source: VolumeSource, config: IngestConfig, problems: list[DataError]) -> Volume | None:
    try:
        return source.read(max_voxels=config.max_voxels)
    except DataError as error:
        problems.append(error)
    except MemoryError:
        problems.append(
            DataError(
                "The volume does not fit into memory.",
                where=source.where,
                action="Lower `max_voxels` to refuse such files, or use a larger machine.",
            )
        )
    return None


def _image_problems(image: Volume, where: str) -> list[DataError]:
    try:
        require_finite(image.array_shw, where)
    except DataError as error:
        return [error]
    return []


def _label_problems(label: Volume, where: str, class_count: int) -> list[DataError]:
    values = np.unique(label.array_shw).astype(np.float64)
    whole = np.isfinite(values) & (values == np.floor(values))
    if not whole.all():
        return [
            DataError(
                "The mask holds values that are no classes.",
                where=where,
                expected="whole numbers",
                found=f"{values[~whole][:5].tolist()}",
                action="Export it again as integers without interpolation.",
            )
        ]
    unknown = values[(values < 0) | (values >= class_count)]
    if unknown.size == 0:
        return []
    return [
        DataError(
            "The mask holds an unknown class.",
            where=where,
            expected=f"0 to {class_count - 1}",
            found=f"{unknown[:5].tolist()}",
            action="Correct the mask, or the list of classes.",
        )
    ]


def _pair_problems(
    image: Volume, label: Volume, where: str, config: IngestConfig
) -> list[DataError]:
    action = "Export the mask on the grid of its image."
    if image.grid.shape_shw != label.grid.shape_shw:
        return [
            DataError(
                "Image and mask differ in shape.",
                where=where,
                expected=f"{image.grid.shape_shw} (slices, rows, columns)",
                found=label.grid.shape_shw,
                action=action,
            )
        ]
    distance_mm = largest_corner_distance_mm(image.grid, label.grid)
    if distance_mm <= config.affine_tolerance_mm:
        return []
    return [
        DataError(
            "Image and mask lie in different places.",
            where=where,
            expected=f"at most {config.affine_tolerance_mm} mm apart",
            found=f"{distance_mm:.6g} mm apart at the farthest corner",
            action=action + " A difference in orientation shows as a large distance.",
        )
    ]


def _packable(array: Array) -> Array:
    return array if array.dtype.kind in "iu" else array.astype(np.float32, copy=False)


def _named(problem: DataError, case_id: str) -> DataError:
    where = problem.where if case_id in problem.where else f"{case_id} ({problem.where})"
    return DataError(
        problem.what,
        where=where,
        expected=problem.expected,
        found=problem.found,
        action=problem.action,
    )
