"""The 2018 left-atrium benchmark as UA-MT processed it: one `mri_norm2.h5` per scan.

Arrays are (x, y, z), already cropped around the mask and normalised; no spacing is stored.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sssflow.contracts.dataset import Modality
from sssflow.errors import DataError
from sssflow.ingest.layouts.base import (
    Findings,
    H5VolumeSource,
    Layout,
    LayoutOptions,
    ListName,
    SourceCase,
    SourceDataset,
    left_out_note,
    read_list,
    unread_folders,
    visible,
)

CLASS_NAMES = ("background", "LA")

TREE = """\
<root>/
    train.list                      one scan id per line; the first ones are the labelled ones
    val.list  test.list             optional
    2018LA_Seg_Training Set/<scan id>/mri_norm2.h5   keys image, label; axes x, y, z"""

_SET = "2018LA_Seg_Training Set"
_FILE = "mri_norm2.h5"
_AXES = (2, 1, 0)


def matches(root: Path) -> bool:
    """Whether there are scan folders with the benchmark's file name."""
    return bool(_scans(root))


def discover(root: Path, options: LayoutOptions) -> SourceDataset:
    """The scans of the lists; without any list all scans, by name."""
    del options
    findings = Findings()
    scans = _scans(root)
    lists = {name: _entries(root / f"{name.value}.list", findings) for name in ListName}
    if not any(lists.values()):
        lists[ListName.TRAIN] = sorted(scans)
    seen: set[str] = set()
    for listed in ListName:
        for scan in lists[listed]:
            seen.add(scan)
            _add_case(root, scan, listed, scans, findings)
    left_out = set(scans) - seen
    return SourceDataset(
        layout=LAYOUT.name,
        class_names=CLASS_NAMES,
        cases=tuple(findings.cases),
        list_names=frozenset(name for name, entries in lists.items() if entries),
        problems=tuple(findings.problems),
        notes=(
            *left_out_note(len(left_out), "scans"),
            *unread_folders(root, (_SET,), (_SET,), (".h5",)),
        ),
    )


LAYOUT = Layout("la", TREE, matches, discover)


def _scans(root: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in visible(root / _SET, f"*/{_FILE}")}


def _entries(path: Path, findings: Findings) -> list[str]:
    if not path.exists():
        return []
    try:
        lines = [PurePosixPath(line) for line in read_list(path)]
    except DataError as error:
        findings.problems.append(error)
        return []
    names = [line.parent.name if line.name == _FILE else line.name for line in lines]
    return findings.without_repeats(names, path)


def _add_case(
    root: Path, scan: str, listed: ListName, scans: dict[str, Path], findings: Findings
) -> None:
    where = root / f"{listed.value}.list"
    if not findings.accepts_id(scan, where):
        return
    if scan not in scans:
        findings.problems.append(
            DataError(
                "A listed scan is missing.",
                where=root / _SET / scan / _FILE,
                expected=f"the scan that {where.name} names",
                action="Copy it from the original data set, or take it out of the list.",
            )
        )
        return
    findings.cases.append(
        SourceCase(
            case_id=scan,
            patient_id=scan,
            image=H5VolumeSource(scans[scan], "image", _AXES),
            label=H5VolumeSource(scans[scan], "label", _AXES),
            modality=Modality.MR,
            listed=listed,
            order=len(findings.cases),
        )
    )
