"""What every layout gives: the cases of a folder, each with readers that open nothing yet."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from sssflow.contracts.dataset import Modality
from sssflow.errors import DataError
from sssflow.storage.plain_file import require_plain_file
from sssflow.volume.geometry import Volume, grid_without_spacing, to_packed_axes
from sssflow.volume.h5 import read_h5
from sssflow.volume.nifti import read_nifti

K = TypeVar("K")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SLICE_AXES = (0, 1, 2)
_LARGEST_LIST_BYTES = 1 << 24
_NOBODYS = "lost+found"  # at the root of a disk, for root alone: a pod meets it on its claim


class ListName(StrEnum):
    """Where the data set's own lists put a case."""

    TRAIN = "train"
    VALIDATION = "val"
    TEST = "test"


class VolumeSource(Protocol):
    """A volume on disk, not opened before `read`."""

    @property
    def where(self) -> str:
        """Path for messages."""

    def read(self, *, max_voxels: int) -> Volume:
        """The volume, packed axes.

        Raises:
            DataError: The file is not what it must be.
        """


@dataclass(frozen=True)
class NiftiSource:
    """One NIfTI file."""

    path: Path

    @property
    def where(self) -> str:
        """Path for messages."""
        return str(self.path)

    def read(self, *, max_voxels: int) -> Volume:
        """See `volume.nifti.read_nifti`."""
        return read_nifti(self.path, max_voxels=max_voxels)


@dataclass(frozen=True)
class H5VolumeSource:
    """A three-dimensional data set of one HDF5 file; `axes` leads to (s, h, w)."""

    path: Path
    key: str
    axes: tuple[int, int, int] = _SLICE_AXES

    @property
    def where(self) -> str:
        """Path for messages."""
        return f"{self.path}:{self.key}"

    def read(self, *, max_voxels: int) -> Volume:
        """The data set without geometry, because the file stores none."""
        values = read_h5(self.path, self.key, ndim=3, max_voxels=max_voxels)
        shape = (values.shape[0], values.shape[1], values.shape[2])
        return Volume(
            to_packed_axes(values, self.axes), grid_without_spacing(shape, axes=self.axes)
        )


@dataclass(frozen=True)
class H5SlicesSource:
    """Two-dimensional data sets of many HDF5 files, in slice order, as one volume."""

    paths: tuple[Path, ...]
    key: str

    @property
    def where(self) -> str:
        """Path for messages: the first slice stands for all."""
        return f"{self.paths[0]}:{self.key} and {len(self.paths) - 1} more slices"

    def read(self, *, max_voxels: int) -> Volume:
        """The slices on top of each other.

        Raises:
            DataError: A slice cannot be read, or shape or type differ among the slices.
        """
        per_slice = max_voxels // len(self.paths)
        slices = [read_h5(path, self.key, ndim=2, max_voxels=per_slice) for path in self.paths]
        first = slices[0]
        for path, one in zip(self.paths, slices, strict=True):
            if one.shape != first.shape or one.dtype != first.dtype:
                raise DataError(
                    "The slices of one volume differ in shape or type.",
                    where=f"{path}:{self.key}",
                    expected=f"{first.shape} {first.dtype} as in {self.paths[0].name}",
                    found=f"{one.shape} {one.dtype}",
                    action="Copy the slices of this volume again from the original data set.",
                )
        array = np.stack(slices)
        shape = (array.shape[0], array.shape[1], array.shape[2])
        return Volume(array, grid_without_spacing(shape))


@dataclass(frozen=True)
class SourceCase:
    """One scan that a layout found.

    Attributes:
        label: None where the data set has no mask; also None once the case became `unlabelled`.
        listed: Where the data set's own lists put the case; TRAIN without lists.
        order: Position in those lists (or by name): the "first n" of a rule means this order.
        meant_without_mask: Whether it lies in a folder for scans without masks, so that a missing
            mask is no fault.
    """

    case_id: str
    patient_id: str
    image: VolumeSource
    label: VolumeSource | None
    modality: Modality
    phase: str = ""
    listed: ListName = ListName.TRAIN
    order: int = 0
    meant_without_mask: bool = False

    def without_label(self) -> SourceCase:
        """The same case, its mask out of reach."""
        return replace(self, label=None)


@dataclass(frozen=True)
class SourceDataset:
    """What a layout found in a folder.

    Attributes:
        slice_patients: Patient of every line of a slice list, for the rule that counts its first
            lines; empty if the layout has none.
        list_names: Lists the data set brought, so that a split rule can rely on them.
        problems: Everything that is wrong with names and folders, case by case.
    """

    layout: str
    class_names: tuple[str, ...]
    cases: tuple[SourceCase, ...]
    slice_patients: tuple[str, ...] = ()
    list_names: frozenset[ListName] = frozenset()
    problems: tuple[DataError, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One way of laying out a data set.

    Attributes:
        name: What `layout:` in the configuration says.
        tree: The expected folder tree, shown when nothing fits.
        matches: Cheap test by names; reads no file.
        discover: Finds the cases; opens lists and headers of text files only.
    """

    name: str
    tree: str
    matches: Callable[[Path], bool]
    discover: Callable[[Path, LayoutOptions], SourceDataset]


@dataclass(frozen=True)
class LayoutOptions:
    """What a user may say about a layout; each layout reads what concerns it."""

    patient_pattern: str = ""
    ct_units: str = "auto"


@dataclass
class Findings:
    """Collects cases and problems while a layout walks its folder."""

    cases: list[SourceCase] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)

    def accepts_id(self, name: str, where: object) -> bool:
        """Whether `name` may be an id; if not, a problem is noted."""
        if _ID.fullmatch(name):
            return True
        self.problems.append(
            DataError(
                "A name cannot be used as an id.",
                where=repr(str(where))[:200],
                expected="letters, digits, '.', '_' and '-', at most 128, a letter or digit first",
                found=repr(name)[:160],
                action="Rename the file or folder.",
            )
        )
        return False

    def by_name(self, named: Iterable[tuple[K, Path]]) -> dict[K, Path]:
        """Files by what they stand for; a second one for the same is noted as a problem."""
        found: dict[K, Path] = {}
        for name, path in named:
            if name in found:
                self.problems.append(
                    DataError(
                        "Two files stand for the same scan or mask.",
                        where=path,
                        found=found[name],
                        action="Keep the one that is meant.",
                    )
                )
            found[name] = path
        return found

    def without_repeats(self, names: Sequence[str], where: object) -> list[str]:
        """The names once each, in order; every repeated one is noted as a problem."""
        counts = Counter(names)
        for name in sorted(name for name, count in counts.items() if count > 1):
            self.problems.append(
                DataError(
                    "A list names an entry twice.",
                    where=where,
                    found=repr(name)[:160],
                    action="Remove one of the two lines.",
                )
            )
        return list(counts)


def read_list(path: Path) -> list[str]:
    """Lines of a text list without blanks; empty lines are dropped.

    Raises:
        DataError: Not readable, too large, or not text.
    """
    try:
        require_plain_file(path)
        if path.stat().st_size > _LARGEST_LIST_BYTES:
            raise DataError("The list is too large.", where=path, action="Check the file.")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(
            "The list is not text.", where=path, expected="UTF-8, one name per line"
        ) from None
    except OSError as error:
        raise DataError(
            "The list cannot be read.",
            where=path,
            found=error.strerror,
            action="Check that it is there and that this user may read it.",
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def left_out_note(count: int, what: str) -> tuple[str, ...]:
    """The note that files were found which no list names; empty for none."""
    return (f"{count} {what} are in no list and left out",) if count else ()


def unread_folders(
    folder: Path, read: Collection[str], known: Collection[str], endings: tuple[str, ...]
) -> list[str]:
    """A note per folder that holds scans, itself or one below, and is not read.

    Its name may be a slip, and a cohort without its unlabelled half trains without a word.

    Args:
        folder: Where the layout looks for folders.
        read: Names of those it reads here.
        known: Names that the layout knows, for the note to suggest one.
        endings: How names of scans end, in small letters; those in other letters count too.
    """
    notes = []
    for other in visible(folder, "*"):
        if other.name in read or not os.access(other, os.R_OK | os.X_OK):
            continue
        held = [path for path in other.glob("*") if not path.name.startswith(".")]
        held += [path for path in other.glob("*/*") if not path.name.startswith(".")]
        count = sum(path.name.lower().endswith(endings) for path in held)
        if count:
            near = get_close_matches(other.name, known, n=1)
            said = f"{other.name} holds {count} image(s) and is not part of the layout: left out"
            notes.append(f"{said}; did you mean {near[0]}?" if near else said)
    return notes


def visible(folder: Path, pattern: str) -> list[Path]:
    """Entries of a folder by name, hidden ones left out; empty if the folder is missing.

    Raises:
        DataError: The folder may not be read; leaving it out would lose cases silently.
    """
    if not folder.is_dir():
        return []
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(
            "A folder cannot be read.",
            where=folder,
            found="no permission",
            action="Give this user the right to read it.",
        )
    found = (path for path in folder.glob(pattern) if not path.name.startswith("."))
    return sorted(path for path in found if path.name != _NOBODYS)
