"""Write phantoms as a folder that the layouts of real data sets read."""

from __future__ import annotations

import gzip
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from sssflow.errors import UsageError
from sssflow.ingest.phantoms.bleeds import BLEEDS
from sssflow.ingest.phantoms.config import PHANTOM_VERSION, PhantomConfig, PhantomSummary
from sssflow.ingest.phantoms.head_ct import draw_head
from sssflow.ingest.phantoms.heart_anatomy import GROUPS
from sssflow.ingest.phantoms.hearts import HeartScan, draw_heart
from sssflow.storage.atomic import write_bytes, write_text

logger = logging.getLogger(__name__)

SUMMARY_NAME = "phantoms.json"

Role = Literal["patients", "unlabelled", "healthy"]

_BRANCH: dict[Role, int] = {"patients": 0, "unlabelled": 1, "healthy": 2}
_HEAD_IMAGES: dict[Role, str] = {
    "patients": "label_192/images",
    "unlabelled": "unlabel/anybleed",
    "healthy": "unlabel/nobleed",
}
_HEART_FOLDERS: tuple[str, ...] = ()
_HEAD_FOLDERS = (
    "label_192",
    "unlabel",
    *_HEAD_IMAGES.values(),
    "label_192/ground truths",
)


def run(config: PhantomConfig, out: Path) -> PhantomSummary:
    """Draw every patient of `config` into `out` and publish `phantoms.json` last.

    Patient i is the same whatever the number of patients. Equal settings give equal bytes.

    Raises:
        UsageError: `out` holds files of something else, or of other patients.
        UnavailableError: The disk refuses.
    """
    names = _names(config)
    own = _HEART_FOLDERS if config.kind == "hearts" else _HEAD_FOLDERS
    _refuse_strangers(out, names, own)
    (out / SUMMARY_NAME).unlink(missing_ok=True)
    total = sum(len(group) for group in names.values())
    done = 0
    for role, group in names.items():
        for index, name in enumerate(group):
            if config.kind == "hearts":
                _write_heart(config, role, index, out / name)
            else:
                _write_head(config, role, index, name, out)
            done += 1
            logger.info("phantom %d of %d: %s", done, total, name)
    summary = PhantomSummary(
        version=PHANTOM_VERSION, kind=config.kind, seed=config.seed, config=config, **names
    )
    write_text(out / SUMMARY_NAME, summary.to_json())
    return summary


def patient_rng(seed: int, index: int, role: Role = "patients") -> np.random.Generator:
    """The generator of one patient: the same whatever the number of patients.

    A patient draws from child `index` of `SeedSequence(seed).spawn`; unlabelled and healthy heads
    have branches of their own.
    """
    key = (index,) if role == "patients" else (_BRANCH[role], index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def nifti_bytes(array_shw: NDArray[np.generic], affine: NDArray[np.float64]) -> bytes:
    """A gzip-compressed NIfTI-1 of slices, rows, columns, stored as x, y, z; no time, no name."""
    image: Any = nib.Nifti1Image(  # type: ignore[no-untyped-call]
        np.ascontiguousarray(array_shw.transpose(2, 1, 0)), affine
    )
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    target = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=4, mtime=0) as file:
        file.write(image.to_bytes())
    return target.getvalue()


def _names(config: PhantomConfig) -> dict[Role, tuple[str, ...]]:
    """Names of the patients of each role, as the layout spells them."""
    counts: dict[Role, int] = {
        "patients": config.patients,
        "unlabelled": config.unlabelled,
        "healthy": config.healthy,
    }
    if config.kind == "hearts":
        first = {"patients": 1, "unlabelled": config.patients + 1, "healthy": 1}
        return {
            role: tuple(f"patient{first[role] + i:03d}" for i in range(count))
            for role, count in counts.items()
        }
    return {
        role: tuple(_head_name(config.seed, role, i) for i in range(count))
        for role, count in counts.items()
    }


def _head_name(seed: int, role: Role, index: int) -> str:
    """`ID_<8 hex>_ID_<10 hex>`, patient and study; the leading 0000 shows that nobody has it."""
    study = patient_rng(seed, index, role).integers(16**6)
    return f"ID_0000{_BRANCH[role]}{index:03x}_ID_0000{study:06x}"


def _write_head(config: PhantomConfig, role: Role, index: int, name: str, out: Path) -> None:
    rng = patient_rng(config.seed, index, role)
    first = 0 if role == "healthy" else BLEEDS[index % len(BLEEDS)]
    scan = draw_head(rng, config.head_ct, config.difficulty, first)
    dx, dy, dz = scan.spacing_mm
    # Columns run to the left, rows to the front: the order that BHSD stores.
    affine = np.diag([-dx, dy, dz, 1.0])
    affine[:3, 3] = np.round(rng.uniform((100, -140, -40), (120, -100, 40)), 2)
    write_bytes(out / _HEAD_IMAGES[role] / f"{name}.nii.gz", nifti_bytes(scan.image, affine))
    if role == "patients":
        mask = nifti_bytes(scan.mask.astype(np.uint16), affine)
        write_bytes(out / "label_192" / "ground truths" / f"{name}.nii.gz", mask)


def _write_heart(config: PhantomConfig, role: Role, index: int, folder: Path) -> None:
    # Hearts are numbered through: patient 12 is the same heart with and without its masks.
    number = index + (config.patients if role == "unlabelled" else 0)
    rng = patient_rng(config.seed, number)
    group = GROUPS[number % len(GROUPS)]
    scan = draw_heart(rng, group, config.hearts, config.difficulty)
    affine = _heart_affine(rng, scan)
    for moment, frame in (("ED", 1), ("ES", scan.es_frame)):
        stem = f"{folder.name}_frame{frame:02d}"
        write_bytes(folder / f"{stem}.nii.gz", nifti_bytes(scan.images[moment], affine))
        if role == "patients":
            write_bytes(folder / f"{stem}_gt.nii.gz", nifti_bytes(scan.masks[moment], affine))
    write_text(
        folder / "Info.cfg",
        f"ED: 1\nES: {scan.es_frame}\nGroup: {scan.group}\nHeight: {scan.height_cm:.1f}\n"
        f"NbFrame: {scan.frames}\nWeight: {scan.weight_kg:.1f}\n",
    )


def _heart_affine(rng: np.random.Generator, scan: HeartScan) -> NDArray[np.float64]:
    """Voxel to patient millimetres; x and y run against the patient's, as scanners store them."""
    dx, dy, dz = scan.spacing_mm
    affine = np.diag([-dx, -dy, dz, 1.0])
    affine[:3, 3] = np.round(rng.uniform((60, 60, -60), (140, 140, 60)), 2)
    return affine


def _refuse_strangers(
    out: Path, names: Mapping[Role, Sequence[str]], own_folders: Sequence[str]
) -> None:
    """A folder with other scans in it would be read as one data set with ours."""
    ours = {name for group in names.values() for name in group}
    strangers = []
    for folder in (out, *(out / name for name in own_folders)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            known = path.name.removesuffix(".nii.gz") in ours or path.name == SUMMARY_NAME
            parent = any(f"{name}/".startswith(f"{path.relative_to(out)}/") for name in own_folders)
            if not (known or parent or path.name.startswith(".")):
                strangers.append(path.relative_to(out).as_posix())
    if strangers:
        raise UsageError(
            "The folder for the phantoms holds something else.",
            where=out,
            expected="an empty or new folder, or one of the same settings",
            found=", ".join(strangers[:5]),
            action="Choose another folder, or empty this one.",
        )
