"""BHSD: head CT with five classes of bleeding, 192 scans with masks, the others without.

Names are `ID_<8 hex>_ID_<10 hex>` = patient and study of the RSNA 2019 set, so one patient may
have several studies. Values should be Hounsfield units, but nothing in the files says so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sssflow.contracts.dataset import Modality
from sssflow.errors import DataError
from sssflow.ingest.layouts.base import (
    Findings,
    Layout,
    LayoutOptions,
    ListName,
    NiftiSource,
    SourceCase,
    SourceDataset,
    VolumeSource,
    read_list,
    unread_folders,
    visible,
)
from sssflow.volume.geometry import Array, Volume
from sssflow.volume.nifti import NIFTI_ENDINGS

CLASS_NAMES = ("background", "EDH", "IPH", "IVH", "SAH", "SDH")

TREE = """\
<root>/
    label_192/images/ID_<8 hex>_ID_<10 hex>.nii.gz
    label_192/ground truths/<the same names>        (the folder name has a space)
    <any name>/anybleed/*.nii.gz                    optional, without masks
    <any name>/nobleed/*.nii.gz                     optional, without masks
    dataset.json                                    optional: "training" and "test" lists"""

_LABELLED = "label_192"
_MASKS = "ground truths"
_UNLABELLED = ("anybleed", "nobleed")
_NAME = re.compile(r"(?P<patient>ID_[0-9a-f]+)_ID_[0-9a-f]+")

_AIR_BELOW_HU = -200
_OFFSET = 1024
_BRAIN_WITH_OFFSET = (_OFFSET - 24, _OFFSET + 126)
_SMALLEST_SHARE = 0.02


def matches(root: Path) -> bool:
    """Whether the folder of the labelled scans is there."""
    return (root / _LABELLED / "images").is_dir()


def discover(root: Path, options: LayoutOptions) -> SourceDataset:
    """All scans with masks, then all without."""
    findings = Findings()
    official = _official_lists(root, findings)
    masks, images = (
        findings.by_name((_stem(path), path) for path in visible(root / _LABELLED / name, "*.nii*"))
        for name in (_MASKS, "images")
    )
    for name in sorted(set(images) ^ set(masks)):
        findings.problems.append(_unpaired(root, name, name in images))
    rank = {name: index for index, name in enumerate(official)}
    order = sorted(images, key=lambda name: (rank.get(name, len(rank)), name))
    for name in order:
        if name in masks:
            listed = official.get(name, ListName.TRAIN)
            label = NiftiSource(masks[name])
            _add_case(name, images[name], label, listed, options, findings)
    folders = _unlabelled_folders(root)
    for folder in folders:
        for path in visible(folder, "*.nii*"):
            _add_case(_stem(path), path, None, ListName.TRAIN, options, findings)
    for name in sorted(set(official) - set(images)):
        findings.problems.append(
            DataError(
                "dataset.json names a scan that is missing.",
                where=root / _LABELLED / "images",
                found=repr(name)[:160],
                action="Copy the scan from the original data set.",
            )
        )
    return SourceDataset(
        layout=LAYOUT.name,
        class_names=CLASS_NAMES,
        cases=tuple(findings.cases),
        list_names=frozenset(official.values()) - {ListName.TRAIN},
        problems=tuple(findings.problems),
        notes=tuple(_unread(root, folders)),
    )


LAYOUT = Layout("bhsd", TREE, matches, discover)


@dataclass(frozen=True)
class HeadCtSource:
    """A head CT in Hounsfield units, whatever the file stores."""

    source: VolumeSource
    units: str = "auto"

    @property
    def where(self) -> str:
        """Path for messages."""
        return self.source.where

    def read(self, *, max_voxels: int) -> Volume:
        """The volume in Hounsfield units; integers stay integers.

        Raises:
            DataError: The file is bad, or its units cannot be told.
        """
        volume = self.source.read(max_voxels=max_voxels)
        return replace(volume, array_shw=to_hounsfield(volume.array_shw, self.units, self.where))


def to_hounsfield(values: Array, units: str, where: str) -> Array:
    """Voxels of a head CT as Hounsfield units.

    `auto`: a minimum below -200 means Hounsfield units (air is -1000). Without one, air at about
    0 and brain at about 1024 + 30 mean an offset of 1024, which is subtracted. Anything else is
    refused: a window cut out before, or another unit, would train on nonsense.

    Args:
        values: Any real dtype; NaN must have been refused or is refused later.
        units: auto, hounsfield or offset1024.
        where: For the message.

    Raises:
        DataError: `auto` cannot tell.
    """
    if units == "hounsfield":
        return values
    lowest = float(values.min())
    if units == "auto" and (lowest < _AIR_BELOW_HU or not np.isfinite(lowest)):
        return values
    low, high = _BRAIN_WITH_OFFSET
    brain = float(np.mean((values >= np.float32(low)) & (values <= np.float32(high))))
    if units == "auto" and (brain < _SMALLEST_SHARE or lowest > -_AIR_BELOW_HU):
        raise DataError(
            "The units of a CT scan cannot be told.",
            where=where,
            expected=f"air below {_AIR_BELOW_HU} (Hounsfield), or air near 0 and brain near 1050",
            found=f"minimum {lowest:g}, {brain:.1%} of voxels in {low} to {high}",
            action="Look at the scan, then say `ct_units: hounsfield` or `offset1024`.",
        )
    if values.dtype.kind == "f":
        return values.astype(np.float32) - np.float32(_OFFSET)
    return values.astype(np.int32) - np.int32(_OFFSET)


def _stem(path: Path | PurePosixPath) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _unlabelled_folders(root: Path) -> list[Path]:
    folders = [f for name in _UNLABELLED for f in (root / name, *visible(root, f"*/{name}"))]
    return sorted(folder for folder in folders if folder.is_dir())


def _unread(root: Path, unlabelled: list[Path]) -> list[str]:
    """Notes on folders beside the labelled ones, and beside anybleed and nobleed."""
    above = sorted({folder.parent for folder in unlabelled} - {root})
    read = {_LABELLED, *_UNLABELLED, *(folder.name for folder in above)}
    notes = unread_folders(root, read, _UNLABELLED, NIFTI_ENDINGS)
    for folder in above:
        notes += unread_folders(folder, _UNLABELLED, _UNLABELLED, NIFTI_ENDINGS)
    return notes


def _add_case(
    name: str,
    path: Path,
    label: NiftiSource | None,
    listed: ListName,
    options: LayoutOptions,
    findings: Findings,
) -> None:
    if not findings.accepts_id(name, path):
        return
    parts = _NAME.fullmatch(name)
    if parts is None:
        findings.problems.append(
            DataError(
                "A scan has a name that names no patient.",
                where=path,
                expected="ID_<8 hex>_ID_<10 hex>.nii.gz",
                action="Give it its original name; the first ID keeps patients in one role.",
            )
        )
        return
    findings.cases.append(
        SourceCase(
            case_id=name,
            patient_id=parts["patient"],
            image=HeadCtSource(NiftiSource(path), options.ct_units),
            label=label,
            modality=Modality.CT,
            listed=listed,
            order=len(findings.cases),
            meant_without_mask=label is None,
        )
    )


def _unpaired(root: Path, name: str, has_image: bool) -> DataError:
    return DataError(
        "A scan and its mask are not both there.",
        where=root / _LABELLED / (_MASKS if has_image else "images"),
        expected=f"{name!r:.160}",
        found="only the image" if has_image else "only the mask",
        action="Copy the missing file; a scan without a mask belongs into anybleed or nobleed.",
    )


def _official_lists(root: Path, findings: Findings) -> dict[str, ListName]:
    """Scan name to list, in file order; empty without a dataset.json."""
    for path in (root / "dataset.json", root / _LABELLED / "dataset.json"):
        if path.is_file():
            try:
                return _parse_lists(json.loads("\n".join(read_list(path))))
            except DataError as error:
                findings.problems.append(error)
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                findings.problems.append(
                    DataError(
                        "dataset.json cannot be used.",
                        where=path,
                        expected='{"training": [...], "test": [...]} with file names',
                        found=str(error)[:160],
                        action="Copy it again, or remove it to split by your own rule.",
                    )
                )
            return {}
    return {}


def _parse_lists(data: Any) -> dict[str, ListName]:
    lists: dict[str, ListName] = {}
    for key, listed in (("training", ListName.TRAIN), ("test", ListName.TEST)):
        for entry in data.get(key, []):
            name = entry["image"] if isinstance(entry, dict) else entry
            stem = _stem(PurePosixPath(name))
            if lists.setdefault(stem, listed) != listed:
                raise DataError(
                    "dataset.json has a scan in both of its lists.",
                    where=stem,
                    expected="training or test",
                    action="Copy it again, or remove it to split by your own rule.",
                )
    return lists
