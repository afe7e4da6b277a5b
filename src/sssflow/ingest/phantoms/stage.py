"""Write phantoms as a folder that the layouts of real data sets read."""

from __future__ import annotations

import gzip
import io
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from sssflow.errors import UsageError
from sssflow.ingest.phantoms.config import PHANTOM_VERSION, PhantomConfig, PhantomSummary
from sssflow.ingest.phantoms.hearts import GROUPS, HeartScan, draw_heart
from sssflow.storage.atomic import write_bytes, write_text

logger = logging.getLogger(__name__)

SUMMARY_NAME = "phantoms.json"


def run(config: PhantomConfig, out: Path) -> PhantomSummary:
    """Draw every patient of `config` into `out` and publish `phantoms.json` last.

    Patient i is the same whatever the number of patients. Equal settings give equal bytes.

    Raises:
        UsageError: `out` holds files of something else, or of other patients.
        UnavailableError: The disk refuses.
    """
    names = _heart_names(config)
    _refuse_strangers(out, {*names, SUMMARY_NAME})
    (out / SUMMARY_NAME).unlink(missing_ok=True)
    for index, name in enumerate(names):
        _write_heart(config, index, out / name, with_mask=index < config.patients)
        logger.info("phantom %d of %d: %s", index + 1, len(names), name)
    summary = PhantomSummary(
        version=PHANTOM_VERSION,
        kind=config.kind,
        seed=config.seed,
        patients=tuple(names[: config.patients]),
        unlabelled=tuple(names[config.patients :]),
        healthy=(),
        config=config,
    )
    write_text(out / SUMMARY_NAME, summary.to_json())
    return summary


def patient_rng(seed: int, index: int) -> np.random.Generator:
    """The generator of patient `index`: child `index` of `SeedSequence(seed).spawn`."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))


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


def _heart_names(config: PhantomConfig) -> list[str]:
    return [f"patient{i + 1:03d}" for i in range(config.patients + config.unlabelled)]


def _write_heart(config: PhantomConfig, index: int, folder: Path, *, with_mask: bool) -> None:
    rng = patient_rng(config.seed, index)
    group = GROUPS[index % len(GROUPS)]
    scan = draw_heart(rng, group, config.hearts, config.difficulty)
    affine = _heart_affine(rng, scan)
    for moment, frame in (("ED", 1), ("ES", scan.es_frame)):
        stem = f"{folder.name}_frame{frame:02d}"
        write_bytes(folder / f"{stem}.nii.gz", nifti_bytes(scan.images[moment], affine))
        if with_mask:
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


def _refuse_strangers(out: Path, expected: set[str]) -> None:
    """A folder with other scans in it would be read as one data set with ours."""
    if not out.exists():
        return
    strangers = sorted(p.name for p in out.iterdir() if p.name not in expected | {".DS_Store"})
    if strangers:
        raise UsageError(
            "The folder for the phantoms holds something else.",
            where=out,
            expected="an empty or new folder, or one of the same settings",
            found=", ".join(strangers[:5]),
            action="Choose another folder, or empty this one.",
        )
