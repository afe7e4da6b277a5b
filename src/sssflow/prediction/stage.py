"""Segment scans that are in no dataset: trained models and NIfTI files in, masks as NIfTI out.

Axis letters: s slices, h rows, w columns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sssflow.contracts.base import Sha256
from sssflow.contracts.dataset import Grid
from sssflow.contracts.prediction import FailedScan, PredictedScan, PredictionSet
from sssflow.errors import DataError, UnavailableError, UsageError
from sssflow.evaluation.config import EvaluateConfig
from sssflow.evaluation.predictions import Labels, predict_volume
from sssflow.networks.device import choose_device
from sssflow.networks.memory import volume_fits
from sssflow.networks.trained import LoadedModel, load_model
from sssflow.prediction.masks import (
    MAX_VOXELS,
    RECORD_FILE,
    MaskFolder,
    empty_record,
    mask_file,
    refuse_among,
)
from sssflow.prediction.scans import FoundScans, find_scans
from sssflow.storage.digest import reference, sha256_file
from sssflow.storage.lock import locked
from sssflow.volume.geometry import voxel_volume_mm3
from sssflow.volume.intensity import require_finite
from sssflow.volume.nifti import read_nifti, unreadable, write_label_like

_LOCK_FILE = ".lock"
_LOG = logging.getLogger(__name__)


def run(config: EvaluateConfig, models: Sequence[Path], scans: Path, out: Path) -> PredictionSet:
    """Segment every scan; call again to go on after an interruption or with new scans.

    A scan that cannot be read or segmented is reported at the end and does not stop the others; a
    mask that an earlier call made of it is removed. Masks that are there already, of the same
    bytes, are kept, and so are those of other scans: the record names them all.

    Args:
        config: What is done at test time, as it was measured: mirror images, largest component,
            window, slices at a time, device. The other keys are not used.
        models: `model.json` of each network; the probabilities of several are averaged.
        scans: A NIfTI file, or a folder whose NIfTI files (not those of its sub-folders) are
            taken; `_0000` at the end of a name, nnU-Net's mark of the first channel, is dropped,
            and `<scan>_gt` beside its scan is left out with a warning.
        out: Folder; gets `<scan>.nii.gz` (uint8, on the grid of its scan) and `predictions.json`.

    Raises:
        DataError: There is no scan, a model is damaged, or (after all others) a scan failed.
        UsageError: Models of different classes, scans of more than one channel, two scans of one
            name, `out` is the folder of the scans, or what it holds is not to be replaced or
            mixed with these masks; see `MaskFolder.open`. No mask was written or removed.
        UnavailableError: The disk is full or read-only, or another call is writing into `out`.
    """
    found = find_scans(scans)
    refuse_among(scans, out)
    job = _Job(config, _load(models, config.device), out)
    if found.masks:
        _LOG.warning(
            "%d files are left out as masks, not scans: %s", len(found.masks), _few(found.masks)
        )
    # The record holds what several calls made: two at once would forget each other's masks.
    busy = UnavailableError(
        "Another call is writing masks into this folder.",
        where=out,
        action="Wait for it to end, or choose another folder.",
    )
    with locked(out / _LOCK_FILE, refusal=busy):
        record = job.walk(found)
    if record.failed:
        raise DataError(
            f"{len(record.failed)} of {len(found.files)} scans could not be segmented.",
            where=out / RECORD_FILE,
            found="\n".join(f"{item.name}: {item.reason}" for item in record.failed[:5]),
            action="Mend or remove these scans and run the same command again.",
        )
    return record


@dataclass(frozen=True)
class _Job:
    config: EvaluateConfig
    models: tuple[LoadedModel, ...]
    out: Path

    def walk(self, found: FoundScans) -> PredictionSet:
        """Every scan in turn; the record on disk follows."""
        empty = empty_record(self.config, [model.description for model in self.models])
        folder = MaskFolder.open(self.out, empty, found)
        for number, (name, path) in enumerate(found.files.items(), start=1):
            file = mask_file(name)
            try:
                digest = _digest(path)
                if not folder.has(file, digest):
                    folder.begin(file)
                    folder.made(file, self.segment(self.out / file, path, digest))
            except DataError as error:
                _LOG.warning("%s: %s", path.name, error.what)
                folder.fail(file, FailedScan(name=path.name, reason=error.describe()))
            folder.save()
            _LOG.info("scan %d of %d: %s", number, len(found.files), name)
        return folder.record

    def segment(self, file: Path, path: Path, digest: Sha256) -> PredictedScan:
        """Read, predict, write."""
        with volume_fits(path):
            volume = read_nifti(path, max_voxels=MAX_VOXELS)
            require_finite(volume.array_shw, path)
            if volume.sform_set_aside:
                _LOG.warning("%s: its sform has other voxel sizes than its qform, taken", path.name)
            labels = predict_volume(volume.array_shw, self.models, self.config)
        write_label_like(file, labels, volume.grid)
        voxels = _voxels(labels, self.models[0].description.class_names)
        return PredictedScan(
            name=path.name,
            source_sha256=digest,
            labels=reference(file, base=self.out),
            voxels=voxels,
            volumes_ml=_millilitres(voxels, volume.grid),
        )


def _load(paths: Sequence[Path], device: str) -> tuple[LoadedModel, ...]:
    if not paths:
        raise UsageError("At least one model is needed.", expected="path of a model.json")
    models = tuple(load_model(path, device=choose_device(device)) for path in paths)
    names = {model.description.class_names for model in models}
    if len(names) > 1:
        raise UsageError(
            "Models of different classes cannot be averaged.",
            expected="the same classes in the same order",
            found=" and ".join(str(list(n)) for n in sorted(names)),
        )
    return models


def _digest(path: Path) -> Sha256:
    try:
        return sha256_file(path)
    except OSError as error:
        raise unreadable(path, error) from None


def _voxels(labels_shw: Labels, class_names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels_shw.ravel(), minlength=len(class_names))
    return {name: int(counts[k]) for k, name in enumerate(class_names) if k > 0}


def _millilitres(voxels: Mapping[str, int], grid: Grid) -> dict[str, float] | None:
    if not grid.spacing_known:
        return None
    voxel_mm3 = voxel_volume_mm3(grid)
    return {name: count * voxel_mm3 / 1000 for name, count in voxels.items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
