"""nnU-Net's raw format, one channel, with an extra folder `imagesUn` for scans without masks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sssflow.contracts.dataset import Modality
from sssflow.errors import DataError, UsageError
from sssflow.ingest.layouts.base import (
    Findings,
    Layout,
    LayoutOptions,
    ListName,
    NiftiSource,
    SourceCase,
    SourceDataset,
    read_list,
    unread_folders,
    visible,
)
from sssflow.volume.nifti import NIFTI_ENDINGS

TREE = """\
<root>/
    dataset.json                    channel_names (one), labels, file_ending
    imagesTr/<case>_0000.nii.gz     labelsTr/<case>.nii.gz
    imagesUn/<case>_0000.nii.gz     optional, without masks
    imagesTs/<case>_0000.nii.gz     used if labelsTs/<case>.nii.gz are there"""

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})", re.DOTALL)
_MOST_CLASSES = 256
"""Masks are stored in 8 bits."""
_FOLDERS = ("imagesTr", "imagesUn", "imagesTs", "labelsTr", "labelsTs")


def matches(root: Path) -> bool:
    """Whether imagesTr is there."""
    return (root / "imagesTr").is_dir()


def discover(root: Path, options: LayoutOptions) -> SourceDataset:
    """Training cases, then unlabelled ones, then test cases with masks.

    Raises:
        DataError: dataset.json is missing or describes what this project does not read.
        UsageError: `patient_pattern` is not a regular expression.
    """
    path = root / "dataset.json"
    description = _read_description(path)
    walk = _Walk(root, _ending(description, path), _modality(description, path))
    walk.pattern = _pattern(options.patient_pattern)
    walk.add_group("Tr", ListName.TRAIN)
    walk.add_group("Un", ListName.TRAIN)
    tested = (root / "labelsTs").is_dir()
    if tested:
        walk.add_group("Ts", ListName.TEST)
    ignored = (root / "imagesTs").is_dir() and not tested
    return SourceDataset(
        layout=LAYOUT.name,
        class_names=_class_names(description, path),
        cases=tuple(walk.findings.cases),
        list_names=frozenset({ListName.TEST} if tested else ()),
        problems=tuple(walk.findings.problems),
        notes=(
            *(("imagesTs is left out: there is no labelsTs",) if ignored else ()),
            *unread_folders(root, _FOLDERS, _FOLDERS, NIFTI_ENDINGS),
            *_foreign_files(root, walk.ending),
            *_unsaid_ending(description, walk.ending),
        ),
    )


LAYOUT = Layout("nnunet", TREE, matches, discover)


@dataclass
class _Walk:
    """What the groups of folders have in common."""

    root: Path
    ending: str
    modality: Modality
    pattern: re.Pattern[str] | None = None
    findings: Findings = field(default_factory=Findings)

    def add_group(self, group: str, listed: ListName) -> None:
        """Add the cases of imagesTr, imagesUn or imagesTs."""
        images, unnumbered = _images(self.root / f"images{group}", self.ending, self.findings)
        label_files = _files(self.root / f"labels{group}", self.ending)
        labels = {path.name.removesuffix(self.ending): path for path in label_files}
        without_masks = group == "Un"
        if not without_masks:
            named = {name: path for name, path in labels.items() if name not in unnumbered}
            self.findings.problems.extend(_unpaired(self.root, group, images, named))
        for name, path in images.items():
            patient = _patient(name, path, self.pattern, self.findings)
            if patient and (without_masks or name in labels):
                self.findings.cases.append(
                    SourceCase(
                        case_id=name,
                        patient_id=patient,
                        image=NiftiSource(path),
                        label=None if without_masks else NiftiSource(labels[name]),
                        modality=self.modality,
                        listed=listed,
                        order=len(self.findings.cases),
                        meant_without_mask=without_masks,
                    )
                )


def _files(folder: Path, ending: str) -> list[Path]:
    return [path for path in visible(folder, "*") if path.name.endswith(ending)]


def _ending(description: Mapping[str, Any], path: Path) -> str:
    ending = str(description.get("file_ending", NIFTI_ENDINGS[0]))
    if ending not in NIFTI_ENDINGS:
        raise _unreadable(path, "file_ending", " or ".join(NIFTI_ENDINGS), ending)
    return ending


def _foreign_files(root: Path, ending: str) -> list[str]:
    """A note per folder of the layout that holds scans with another ending than the named one."""
    notes = []
    for name in _FOLDERS:
        files = [
            path.name
            for path in visible(root / name, "*")
            if path.name.lower().endswith(NIFTI_ENDINGS)
        ]
        others = [file for file in files if not file.endswith(ending)]
        if others:
            notes.append(f"{name}: {len(others)} image(s) do not end in {ending}: left out")
    return notes


def _unsaid_ending(description: Mapping[str, Any], ending: str) -> tuple[str, ...]:
    key = "file_ending"
    if key in description:
        return ()
    near = get_close_matches(key, description, n=1)
    slip = f"; it has {near[0]!r}, which is not read" if near else ""
    return (f"dataset.json has no {key}: {ending} is taken{slip}",)


def _images(folder: Path, ending: str, findings: Findings) -> tuple[dict[str, Path], set[str]]:
    """Case to its image, and the names of images that lack the number of their channel."""
    images = {}
    unnumbered = set()
    for path in _files(folder, ending):
        name = path.name.removesuffix(ending)
        found = _CHANNEL.fullmatch(name)
        if found is None:
            unnumbered.add(name)
            findings.problems.append(
                DataError(
                    "The name of an image lacks the number of its channel.",
                    where=repr(str(path))[:200],
                    expected=f"<case>_0000{ending}",
                    found=repr(path.name)[:160],
                    action=f"Rename it to {name[:120]}_0000{ending}; its mask keeps its name.",
                )
            )
            continue
        if found["channel"] != "0000":
            findings.problems.append(
                DataError(
                    "An image is not the only channel of its case.",
                    where=repr(str(path))[:200],
                    expected=f"<case>_0000{ending}; only one channel is supported",
                    action="Keep one channel, named _0000.",
                )
            )
            continue
        images[found["case"]] = path
    return images, unnumbered


def _patient(
    name: str, path: Path, pattern: re.Pattern[str] | None, findings: Findings
) -> str | None:
    if not findings.accepts_id(name, path):
        return None
    if pattern is None:
        return name
    found = pattern.match(name)
    patient = (found["patient"] if "patient" in pattern.groupindex else found[0]) if found else None
    if not patient:
        findings.problems.append(
            DataError(
                "A case does not fit patient_pattern.",
                where=name,
                expected=pattern.pattern,
                action="Correct the pattern; a wrong patient lets one person cross roles.",
            )
        )
        return None
    return patient if findings.accepts_id(patient, path) else None


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise UsageError(
            "patient_pattern is not a regular expression.", found=f"{text!r}: {error}"
        ) from None


def _unpaired(
    root: Path, group: str, images: Mapping[str, Path], labels: Mapping[str, Path]
) -> list[DataError]:
    return [
        DataError(
            "A scan and its mask are not both there.",
            where=root / (f"labels{group}" if name in images else f"images{group}"),
            expected=repr(name)[:160],
            found="only the image" if name in images else "only the mask",
            action="Copy the missing file; a scan without a mask belongs into imagesUn.",
        )
        for name in sorted(set(images) ^ set(labels))
    ]


def _read_description(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(
            "The folder has imagesTr, as nnU-Net's layout, but no dataset.json.",
            where=path,
            expected='an object such as {"channel_names": {"0": "MRI"}, '
            '"labels": {"background": 0, "heart": 1}, "file_ending": ".nii.gz"}',
            found="no such file",
            action="Write it with the names of your classes; a channel named CT means CT scans.",
        )
    try:
        data = json.loads("\n".join(read_list(path)))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, "JSON", "an object", str(error)) from None
    if not isinstance(data, dict):
        raise _unreadable(path, "JSON", "an object", type(data).__name__)
    return data


def _modality(description: Mapping[str, Any], path: Path) -> Modality:
    """CT by nnU-Net's rule (the channel is called CT); anything else is treated as MR."""
    channels = description.get("channel_names", description.get("modality"))
    if not isinstance(channels, dict) or len(channels) != 1:
        raise _unreadable(path, "channel_names", "exactly one channel", channels)
    name = str(next(iter(channels.values())))
    return Modality.CT if name.upper() == "CT" else Modality.MR


def _class_names(description: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Both forms: {"liver": 1} (version 2) and {"1": "liver"} (version 1)."""
    labels = description.get("labels")
    if not isinstance(labels, dict):
        raise _unreadable(path, "labels", 'an object such as {"background": 0}', labels)
    by_value: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (value, key) if isinstance(value, int) else (key, value)
        if not str(number).isdecimal() or not isinstance(name, str):
            raise _unreadable(path, "labels", "one whole number per class, no regions", labels)
        by_value[int(number)] = name
    whole = sorted(by_value) == list(range(len(labels))) and len(labels) >= 2
    if not whole or "ignore" in by_value.values():
        raise _unreadable(path, "labels", "numbers 0, 1, 2 ... without a gap or `ignore`", labels)
    if len(labels) > _MOST_CLASSES:
        raise _unreadable(path, "labels", f"at most {_MOST_CLASSES} classes", len(labels))
    names = ("background", *(by_value[index] for index in range(1, len(labels))))
    # In a table or a report, names that differ in blanks alone are one.
    seen = Counter("".join(name.split()) for name in names)
    unclear = [name for name in names if not name.strip() or seen["".join(name.split())] > 1]
    if unclear:
        raise _unreadable(path, "labels", "a name per class that tells it from others", unclear)
    return names


def _unreadable(path: Path, key: str, expected: str, found: object) -> DataError:
    return DataError(
        "dataset.json describes something that is not supported.",
        where=f"{path}: {key}",
        expected=expected,
        found=f"{found!r:.160}",
        action="Correct dataset.json, or convert the data set.",
    )
