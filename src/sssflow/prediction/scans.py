"""The scans of a folder, and what is said where there are none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sssflow.errors import DataError, UsageError

_SUFFIXES = (".nii.gz", ".nii")
_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class FoundScans:
    """What a place holds.

    Attributes:
        files: Name of each mask to be made, without suffix and sorted, to the file of its scan.
    """

    files: Mapping[str, Path]


def find_scans(place: Path) -> FoundScans:
    """The NIfTI files of a folder (not those of its sub-folders), or the one that is named.

    Raises:
        DataError: There is none; what is there instead is told.
        UsageError: More than one channel, or two scans of one name.
    """
    found: dict[str, Path] = {}
    for path in _entries(place) if place.is_dir() else [place]:
        suffix = _suffix(path)
        if suffix is None:
            continue
        name = path.name.removesuffix(suffix)
        channel = _CHANNEL.search(name)
        if channel is not None and channel[1] != "0000":
            raise UsageError(
                "The scans have more than one channel.",
                where=path,
                expected="one channel per scan",
                found=f"channel {channel[1]}",
                action="Keep one channel in the folder: models are trained on one.",
            )
        name = name.removesuffix("_0000")
        if name in found:
            raise UsageError(
                "Two scans would have one mask.", where=path, found=found[name].name,
                action="Rename one of them.",
            )  # fmt: skip
        found[name] = path
    if not found:
        raise _no_scan(place)
    return FoundScans(found)


def _suffix(path: Path) -> str | None:
    """`.nii.gz` or `.nii` of a file that has one."""
    suffix = next((s for s in _SUFFIXES if path.name.endswith(s)), None)
    return suffix if suffix is not None and path.is_file() else None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            "The folder of the scans cannot be read.",
            where=folder,
            found=error.strerror,
            action="Check the rights of this user.",
        ) from None


def _no_scan(place: Path) -> DataError:
    return DataError(
        "There is no scan to segment.",
        where=place,
        expected="a NIfTI file (.nii, .nii.gz), or a folder of them",
        found="nothing of that kind",
        action="Convert DICOM series to NIfTI first; name the folder that holds the files.",
    )
