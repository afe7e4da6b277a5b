"""ACDC as SSL4MIS processed it: HDF5 slices to train on, HDF5 volumes to validate and test on.

Two forms are in use: `data/slices/*.h5` beside `data/*.h5`, and all files flat in `data/`. A list
entry is a bare name or a path such as `data/slices/x.h5`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from sssflow.contracts.dataset import Modality
from sssflow.errors import DataError
from sssflow.ingest.layouts.acdc import CLASS_NAMES
from sssflow.ingest.layouts.base import (
    Findings,
    H5SlicesSource,
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

TREE = """\
<root>/
    train_slices.list               one slice name per line; its first lines are the labelled ones
    val.list  test.list             one volume name per line (test.list may be missing)
    train.list                      optional
    data/slices/patient001_frame01_slice_1.h5   keys image, label; or flat in data/
    data/patient002_frame01.h5                  keys image, label"""

_SLICE = re.compile(r"(?P<volume>.+)_slice_(?P<z>\d{1,5})", re.DOTALL)
_VOLUME = re.compile(r"(?P<patient>.+)_frame(?P<frame>\d{1,4})", re.DOTALL)
_PHASES = {1: "ED", 2: "ES"}


def matches(root: Path) -> bool:
    """Whether there are HDF5 files in `data/` with SSL4MIS's names or lists."""
    has_list = any((root / f"{name}.list").is_file() for name in ("train_slices", "val", "test"))
    return (root / "data").is_dir() and (has_list or bool(_named(root / "data" / "slices")))


def discover(root: Path, options: LayoutOptions) -> SourceDataset:
    """The volumes of the lists; training volumes are rebuilt from their slices."""
    del options
    findings = Findings()
    slices = _slices_by_volume(root, findings)
    volumes = _volumes(root)
    lists = {name: _entries(root / f"{name.value}.list", findings) for name in ListName}
    slice_lines = _entries(root / "train_slices.list", findings)
    _check_slice_lines(root, slice_lines, slices, findings)
    order = _training_order(slice_lines, lists[ListName.TRAIN], slices)
    _check_lists(root, order, lists, findings)
    wanted = [(name, ListName.TRAIN) for name in order]
    wanted += [(n, k) for k in (ListName.VALIDATION, ListName.TEST) for n in lists[k]]
    for name, listed in wanted:
        _add_case(root, name, listed, slices, volumes, findings)
    if not wanted:
        findings.problems.append(
            DataError("The folder holds no case.", where=root, expected=f"\n{TREE}")
        )
    left_out = set(slices) | set(volumes)
    left_out -= {name for name, _ in wanted}
    return SourceDataset(
        layout=LAYOUT.name,
        class_names=CLASS_NAMES,
        cases=tuple(findings.cases),
        slice_patients=tuple(_patient(_volume_of(line)) for line in slice_lines),
        list_names=frozenset(name for name, entries in lists.items() if entries),
        problems=tuple(findings.problems),
        notes=(
            *left_out_note(len(left_out), "volumes"),
            *unread_folders(root, ("data",), ("data",), (".h5",)),
            *unread_folders(root / "data", ("slices",), ("slices",), (".h5",)),
        ),
    )


LAYOUT = Layout("ssl4mis", TREE, matches, discover)


def _named(folder: Path) -> list[Path]:
    return [path for path in visible(folder, "*.h5") if _SLICE.fullmatch(path.stem)]


def _slices_by_volume(root: Path, findings: Findings) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in _named(root / "data" / "slices") + _named(root / "data"):
        name = _SLICE.fullmatch(path.stem)
        if name is None:
            continue
        volume, z = name["volume"], int(name["z"])
        if z in found[volume]:
            findings.problems.append(
                DataError(
                    "A slice is there twice.",
                    where=path,
                    found=found[volume][z],
                    action="Keep one of the two folder forms, not a mixture.",
                )
            )
        found[volume][z] = path
    return dict(found)


def _volumes(root: Path) -> dict[str, Path]:
    found = visible(root / "data", "*_frame*.h5")  # slices lie beside them in the flat form
    return {path.stem: path for path in found if not _SLICE.fullmatch(path.stem)}


def _entries(path: Path, findings: Findings) -> list[str]:
    """Bare names of a list; a missing list is empty."""
    if not path.exists():
        return []
    try:
        names = [PurePosixPath(line).name.removesuffix(".h5") for line in read_list(path)]
    except DataError as error:
        findings.problems.append(error)
        return []
    return findings.without_repeats(names, path)


def _volume_of(slice_name: str) -> str:
    found = _SLICE.fullmatch(slice_name)
    return found["volume"] if found else slice_name


def _patient(volume: str) -> str:
    found = _VOLUME.fullmatch(volume)
    return found["patient"] if found else volume


def _check_slice_lines(
    root: Path, lines: list[str], slices: Mapping[str, Mapping[int, Path]], findings: Findings
) -> None:
    known = {f"{volume}_slice_{z}" for volume, found in slices.items() for z in found}
    listed_volumes = {_volume_of(line) for line in lines}
    unlisted = {name for name in known if _volume_of(name) in listed_volumes} - set(lines)
    for names, what, expected in (
        (set(lines) - known, "A listed slice is missing.", "an HDF5 file of that name in data/"),
        (unlisted, "A slice of a listed volume is not in the list.", "every slice of the volume"),
    ):
        for name in sorted(names):
            findings.problems.append(
                DataError(
                    what,
                    where=root / "train_slices.list",
                    expected=expected,
                    found=repr(name)[:160],
                    action="Copy the data set again: files and list do not belong together.",
                )
            )


def _training_order(
    slice_lines: list[str], train: list[str], slices: Mapping[str, object]
) -> list[str]:
    """Training volumes: in the order of the slice list, else of train.list, else by name."""
    if slice_lines:
        return list(dict.fromkeys(_volume_of(line) for line in slice_lines))
    return train or sorted(slices)


def _check_lists(
    root: Path, order: list[str], lists: Mapping[ListName, list[str]], findings: Findings
) -> None:
    train = lists[ListName.TRAIN]
    for name in sorted(set(train).symmetric_difference(order)) if train else []:
        findings.problems.append(
            DataError(
                "train.list and train_slices.list do not name the same volumes.",
                where=root / "train.list",
                found=repr(name)[:160],
                action="Copy both lists from the same version of the data set.",
            )
        )


def _add_case(
    root: Path,
    name: str,
    listed: ListName,
    slices: Mapping[str, Mapping[int, Path]],
    volumes: Mapping[str, Path],
    findings: Findings,
) -> None:
    where = root / f"{listed.value}.list"
    if not findings.accepts_id(name, where):
        return
    parts = _VOLUME.fullmatch(name)
    if parts is None:
        findings.problems.append(
            DataError(
                "A list entry is not a volume name.",
                where=where,
                expected="patient<number>_frame<number>",
                found=name,
            )
        )
        return
    sources = _sources(name, slices, volumes, root, findings)
    if sources is None:
        return
    findings.cases.append(
        SourceCase(
            case_id=name,
            patient_id=parts["patient"],
            image=sources[0],
            label=sources[1],
            modality=Modality.MR,
            phase=_PHASES.get(int(parts["frame"]), ""),
            listed=listed,
            order=len(findings.cases),
        )
    )


def _sources(
    name: str,
    slices: Mapping[str, Mapping[int, Path]],
    volumes: Mapping[str, Path],
    root: Path,
    findings: Findings,
) -> tuple[H5SlicesSource, H5SlicesSource] | tuple[H5VolumeSource, H5VolumeSource] | None:
    if name in slices:
        numbers = sorted(slices[name])
        gaps = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
        # Counting starts at 0 in SSL4MIS's script and at 1 in the files that are in use.
        if gaps or numbers[0] > 1:
            findings.problems.append(
                DataError(
                    "A volume has a gap between its slices.",
                    where=slices[name][numbers[0]].parent / f"{name}_slice_*.h5",
                    expected="numbers without a gap from 0 or 1",
                    found=f"missing {(gaps or list(range(1, numbers[0])))[:10]}",
                    action="Copy the missing slices from the original data set.",
                )
            )
            return None
        paths = tuple(slices[name][z] for z in numbers)
        return H5SlicesSource(paths, "image"), H5SlicesSource(paths, "label")
    if name in volumes:
        return H5VolumeSource(volumes[name], "image"), H5VolumeSource(volumes[name], "label")
    findings.problems.append(
        DataError(
            "A listed volume is missing.",
            where=root / "data" / f"{name}.h5",
            expected="the volume, or all its slices",
            action="Copy it from the original data set, or take it out of the list.",
        )
    )
    return None
