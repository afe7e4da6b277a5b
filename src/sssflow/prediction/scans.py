"""The scans of a folder, and what is said where there are none."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sssflow.errors import DataError, UsageError
from sssflow.storage.names import require_text_name
from sssflow.volume.nifti import NIFTI_ENDINGS

_CHANNEL = re.compile(r"_(\d{4})$")
_MASK_MARK = "_gt"
_DICOM_MAGIC = b"DICM"
_DICOM_MAGIC_AT = 128
_MOST_PROBED = 200
"""Files of a folder, and folders, that are looked at for words on why there is no scan."""
_MOST_NAMED = 8


@dataclass(frozen=True)
class FoundScans:
    """What a place holds.

    Attributes:
        files: Name of each mask to be made, without suffix and sorted, to the file of its scan.
        masks: Files that are left out: `<scan>_gt`, beside their scans.
    """

    files: Mapping[str, Path]
    masks: tuple[str, ...] = ()


def find_scans(place: Path) -> FoundScans:
    """The NIfTI files of a folder (not those of its sub-folders), or the one that is named.

    Hidden files of a folder are none, such as `._scan.nii.gz` that a Mac leaves beside a copy.

    Raises:
        DataError: There is none; what is there instead is told. Or a name is not UTF-8.
        UsageError: More than one channel, or two scans of one name.
    """
    found: dict[str, Path] = {}
    for path in _entries(place) if place.is_dir() else [place]:
        suffix = _suffix(path)
        if suffix is None or (path != place and path.name.startswith(".")):
            continue
        require_text_name(Path(path.name))
        name = path.name[: -len(suffix)]
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
    masks = [n for n in found if n.endswith(_MASK_MARK) and n.removesuffix(_MASK_MARK) in found]
    return FoundScans(
        {name: path for name, path in found.items() if name not in masks},
        tuple(found[name].name for name in masks),
    )


def _suffix(path: Path) -> str | None:
    """`.nii.gz` or `.nii`, in letters of any case, of a file that has one."""
    suffix = next((s for s in NIFTI_ENDINGS if path.name.lower().endswith(s)), None)
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
    below = _folders(place)[:_MOST_PROBED]
    found, action = (
        "nothing of that kind",
        (
            "Name the folder that holds the files; other formats, such as series of DICOM, "
            "are converted to NIfTI first."
        ),
    )
    near = [path for folder in (place, *below) for path in _few_files(folder)]
    if holders := [folder.name for folder in below if any(map(_suffix, _few_files(folder)))]:
        found = f"NIfTI files in {_listed(sorted(holders, key=_scans_first))}"
        action = "Name one of these folders."
    elif any(path.suffix == ".h5" for path in near):
        found = "HDF5 files (.h5)"
        action = ".h5 is read for training only: convert the scans to NIfTI."
    elif any(map(_is_dicom, near)):
        found, action = "DICOM files", "Convert every series to a NIfTI file first."
    return DataError(
        "There is no scan to segment.",
        where=place,
        expected="a NIfTI file (.nii, .nii.gz), or a folder that holds them itself",
        found=found,
        action=action,
    )


def _folders(place: Path) -> list[Path]:
    """Sub-folders that are not hidden; none where the place is a file."""
    if not place.is_dir():
        return []
    return [path for path in _entries(place) if path.is_dir() and not path.name.startswith(".")]


def _few_files(place: Path) -> list[Path]:
    """Some files of a folder, or the file itself; a closed folder has none to tell of."""
    if not place.is_dir():
        return [place] if place.is_file() else []
    with contextlib.suppress(OSError):
        return list(islice(_files(place), _MOST_PROBED))
    return []


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.is_file())


def _scans_first(name: str) -> tuple[bool, bool, str]:
    """Order of nnU-Net's folders: those that are meant to be predicted, others, masks."""
    return name.lower().startswith("label"), name != "imagesTs", name


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MOST_NAMED} others" if len(names) > _MOST_NAMED else ""
    return ", ".join(f"{name}/" for name in names[:_MOST_NAMED]) + rest


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() == ".dcm":
        return True
    if path.suffix and not path.suffix[1:].isdigit():  # unique ids end in a dot and digits
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(_DICOM_MAGIC_AT)
        return file.read(len(_DICOM_MAGIC)) == _DICOM_MAGIC
    return False
