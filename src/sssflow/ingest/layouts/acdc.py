"""ACDC as its organisers give it: one folder per patient, NIfTI frames and an Info.cfg."""

from __future__ import annotations

import re
from pathlib import Path

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
    read_list,
    unread_folders,
    visible,
)
from sssflow.volume.nifti import NIFTI_ENDINGS

CLASS_NAMES = ("background", "RV", "MYO", "LV")

TREE = """\
<root>/[training/|testing/]patient001/
    Info.cfg                        lines "ED: 1", "ES: 12", "Group: DCM"
    patient001_frame01.nii.gz       end diastole (frame number = ED)
    patient001_frame01_gt.nii.gz    its mask; may be missing
    patient001_frame12.nii.gz       end systole (frame number = ES)
    patient001_frame12_gt.nii.gz
    patient001_4d.nii.gz            not used"""

_FRAME = re.compile(r"(?P<patient>.+)_frame(?P<frame>\d{1,4})(?P<gt>_gt)?\.nii(\.gz)?", re.DOTALL)
_LISTS = {"training": ListName.TRAIN, "testing": ListName.TEST}
_GROUPS = (("", ListName.TRAIN), *_LISTS.items())


def matches(root: Path) -> bool:
    """Whether a patient folder with an Info.cfg or a frame lies where it should."""
    return any(
        _is_patient_folder(folder)
        for name, _ in _GROUPS
        for folder in visible(root / name, "*")
        if folder.is_dir()
    )


def discover(root: Path, options: LayoutOptions) -> SourceDataset:
    """All frames of all patients; ED and ES by Info.cfg."""
    del options
    findings = Findings()
    notes: list[str] = []
    for group, listed in _GROUPS:
        folders = [folder for folder in visible(root / group, "*") if folder.is_dir()]
        patients = [f for f in folders if _is_patient_folder(f) or _is_named_patient(f)]
        for folder in patients:
            _add_patient(folder, listed, findings)
        read = {folder.name for folder in patients}.union(_LISTS)
        notes += unread_folders(root / group, read, _LISTS, NIFTI_ENDINGS)
    has_test = (root / "testing").is_dir()
    return SourceDataset(
        layout=LAYOUT.name,
        class_names=CLASS_NAMES,
        cases=tuple(findings.cases),
        list_names=frozenset({ListName.TEST} if has_test else ()),
        problems=tuple(findings.problems),
        notes=tuple(notes),
    )


LAYOUT = Layout("acdc", TREE, matches, discover)


def _is_named_patient(folder: Path) -> bool:
    return re.fullmatch(r"patient\d+", folder.name) is not None


def _is_patient_folder(folder: Path) -> bool:
    return (folder / "Info.cfg").is_file() or bool(visible(folder, "*_frame*.nii*"))


def _add_patient(folder: Path, listed: ListName, findings: Findings) -> None:
    patient = folder.name
    if not findings.accepts_id(patient, folder):
        return
    try:
        phases = _phases(folder / "Info.cfg")
    except DataError as error:
        findings.problems.append(error)
        phases = {}
    files: dict[bool, list[tuple[int, Path]]] = {False: [], True: []}
    for path in visible(folder, "*_frame*.nii*"):
        found = _FRAME.fullmatch(path.name)
        if found is None or found["patient"] != patient:
            findings.problems.append(_foreign_name(path, patient))
            continue
        files[found["gt"] is not None].append((int(found["frame"]), path))
    images, labels = findings.by_name(files[False]), findings.by_name(files[True])
    findings.problems.extend(_missing_frames(folder, images, labels, phases))
    for frame, path in sorted(images.items()):
        findings.cases.append(
            SourceCase(
                case_id=f"{patient}_frame{frame:02d}",
                patient_id=patient,
                image=NiftiSource(path),
                label=NiftiSource(labels[frame]) if frame in labels else None,
                modality=Modality.MR,
                phase=phases.get(frame, ""),
                listed=listed,
                order=len(findings.cases),
            )
        )


def _missing_frames(
    folder: Path, images: dict[int, Path], labels: dict[int, Path], phases: dict[int, str]
) -> list[DataError]:
    problems = []
    for frame in sorted(({*labels, *phases} or {0}) - set(images)):
        wanted = "at least one frame" if frame == 0 else f"{folder.name}_frame{frame:02d}.nii.gz"
        if frame or not images:
            problems.append(
                DataError(
                    "A patient folder lacks an image.",
                    where=folder,
                    expected=wanted,
                    found=f"{len(images)} image(s), {len(labels)} mask(s)",
                    action="Copy the patient again, or take the folder out.",
                )
            )
    return problems


def _foreign_name(path: Path, patient: str) -> DataError:
    return DataError(
        "A frame has a name that does not fit its folder.",
        where=repr(str(path))[:200],
        expected=f"{patient}_frame<number>[_gt].nii.gz",
        action="Rename it, or move it to the patient it belongs to.",
    )


def _phases(path: Path) -> dict[int, str]:
    """Frame number to phase.

    Raises:
        DataError: Info.cfg is missing, not text, or names no ED and ES frame.
    """
    if not path.is_file():
        raise DataError(
            "Info.cfg is missing.",
            where=path,
            expected='a text with the lines "ED: <frame>" and "ES: <frame>"',
            action="Copy it from the original data set; it says which frame is which phase.",
        )
    entries = dict(
        (key.strip(), value.strip())
        for key, separator, value in (line.partition(":") for line in read_list(path))
        if separator
    )
    try:
        return {int(entries[phase]): phase for phase in ("ES", "ED")}
    except (KeyError, ValueError):
        raise DataError(
            "Info.cfg does not name the ED and ES frames.",
            where=path,
            expected='the lines "ED: <frame>" and "ES: <frame>"',
            found=f"keys {sorted(entries)[:8]!r:.160}",
            action="Copy it again from the original data set.",
        ) from None
