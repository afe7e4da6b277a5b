"""Segment scans that are in no dataset: trained models and NIfTI files in, masks as NIfTI out.

Axis letters: s slices, h rows, w columns.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sssflow.contracts.base import Sha256
from sssflow.contracts.dataset import Grid
from sssflow.contracts.prediction import FailedScan, PredictedScan, PredictionSet
from sssflow.errors import DataError, UsageError
from sssflow.evaluation.config import EvaluateConfig
from sssflow.evaluation.predictions import Labels, predict_volume
from sssflow.networks.device import choose_device
from sssflow.networks.memory import volume_fits
from sssflow.networks.trained import LoadedModel, load_model
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, sha256_file, verified_path
from sssflow.volume.intensity import require_finite
from sssflow.volume.nifti import read_nifti, unreadable, write_label_like

RECORD_FILE = "predictions.json"
MAX_VOXELS = 1 << 27
"""Largest accepted scan, as `ingest.max_voxels`; checked before memory is taken for it."""

_SUFFIXES = (".nii.gz", ".nii")
_CHANNEL = re.compile(r"_(\d{4})$")
_LOG = logging.getLogger(__name__)


def run(config: EvaluateConfig, models: Sequence[Path], scans: Path, out: Path) -> PredictionSet:
    """Segment every scan; call again to go on after an interruption or with new scans.

    A scan that cannot be read or segmented is reported at the end and does not stop the others.
    Masks that are there already, of the same bytes, models and settings, are kept.

    Args:
        config: What is done at test time, as it was measured: mirror images, largest component,
            window, slices at a time, device. The other keys are not used.
        models: `model.json` of each network; the probabilities of several are averaged.
        scans: A NIfTI file, or a folder whose NIfTI files (not those of its sub-folders) are
            taken; `_0000` at the end of a name, nnU-Net's mark of the first channel, is dropped.
        out: Folder; gets `<scan>.nii.gz` (uint8, on the grid of its scan) and `predictions.json`.

    Raises:
        DataError: There is no scan, a model is damaged, or (after all others) a scan failed.
        UsageError: Models of different classes, scans of more than one channel, two scans of one
            name, or `out` is the folder of the scans.
        UnavailableError: The disk is full or read-only.
    """
    found = find_scans(scans)
    if out.resolve() == (scans if scans.is_dir() else scans.parent).resolve():
        raise UsageError(
            "Masks would lie among the scans, and be taken for scans the next time.",
            where=out,
            action="Name another output folder.",
        )
    job = _Job(config, _load(models, config.device), out)
    before = job.before()
    record = job.empty()
    for number, (name, path) in enumerate(found.items(), start=1):
        earlier = before.pop(path.name, None)
        try:
            digest = _digest(path)
            item = job.reused(earlier, digest) or job.segment(name, path, digest)
            record = record.model_copy(update={"scans": (*record.scans, item)})
        except DataError as error:
            _LOG.warning("%s: %s", path.name, error.what)
            failed = FailedScan(name=path.name, reason=error.describe())
            record = record.model_copy(update={"failed": (*record.failed, failed)})
        # With what is still to be looked at, so that a kill here forgets nothing.
        waiting = [before[p.name] for p in found.values() if p.name in before]
        standing = record.model_copy(update={"scans": (*record.scans, *waiting)})
        save_contract(standing, out / RECORD_FILE)
        _LOG.info("scan %d of %d: %s", number, len(found), name)
    if record.failed:
        raise DataError(
            f"{len(record.failed)} of {len(found)} scans could not be segmented.",
            where=out / RECORD_FILE,
            found="\n".join(f"{item.name}: {item.reason}" for item in record.failed[:5]),
            action="Mend or remove these scans and run the same command again.",
        )
    return record


def find_scans(place: Path) -> Mapping[str, Path]:
    """Name of each mask to be made, sorted, to the file of its scan; see `run`."""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    found: dict[str, Path] = {}
    for path in files:
        suffix = next((s for s in _SUFFIXES if path.name.endswith(s)), None)
        if suffix is None or not path.is_file():
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
        raise DataError(
            "There is no scan to segment.",
            where=place,
            expected="a NIfTI file (.nii, .nii.gz), or a folder of them",
            found="nothing of that kind",
            action="Convert DICOM series to NIfTI first; name the folder that holds the files.",
        )
    return found


@dataclass(frozen=True)
class _Job:
    config: EvaluateConfig
    models: tuple[LoadedModel, ...]
    out: Path

    def empty(self) -> PredictionSet:
        """The record before the first scan."""
        about = self.models[0].description
        return PredictionSet(
            model_digests=tuple(model.digest for model in self.models),
            config_digest=_treatment(self.config),
            class_names=about.class_names,
            warnings=tuple(w for model in self.models for w in model.description.warnings),
        )

    def before(self) -> dict[str, PredictedScan]:
        """Name of each scan to what an earlier call of these models and settings made of it."""
        path = self.out / RECORD_FILE
        if not path.is_file():
            return {}
        try:
            found = load_contract(PredictionSet, path)
        except DataError as error:
            _LOG.warning("%s is made again: %s", path.name, error.what)
            return {}
        fresh = self.empty()
        if found.model_digests != fresh.model_digests or found.config_digest != fresh.config_digest:
            return {}
        return {item.name: item for item in found.scans}

    def reused(self, earlier: PredictedScan | None, digest: Sha256) -> PredictedScan | None:
        """The mask that is there already, unharmed and of a scan of the same bytes."""
        if earlier is None or earlier.source_sha256 != digest:
            return None
        try:
            verified_path(earlier.labels, base=self.out)
        except DataError:
            return None
        return earlier

    def segment(self, name: str, path: Path, digest: Sha256) -> PredictedScan:
        """Read, predict, write."""
        with volume_fits(path):
            volume = read_nifti(path, max_voxels=MAX_VOXELS)
            require_finite(volume.array_shw, path)
            labels = predict_volume(volume.array_shw, self.models, self.config)
        file = self.out / f"{name}.nii.gz"
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


def _treatment(config: EvaluateConfig) -> Sha256:
    """Digest of what changes a mask: the keys of measuring and of the device do not."""
    kept = ("window", "test_time_flips", "largest_component")
    return EvaluateConfig.model_validate(config.model_dump(include=set(kept))).digest()


def _voxels(labels_shw: Labels, class_names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(labels_shw.ravel(), minlength=len(class_names))
    return {name: int(counts[k]) for k, name in enumerate(class_names) if k > 0}


def _millilitres(voxels: Mapping[str, int], grid: Grid) -> dict[str, float] | None:
    if not grid.spacing_known:
        return None
    voxel_mm3 = float(np.prod(grid.spacing_shw_mm))
    return {name: count * voxel_mm3 / 1000 for name, count in voxels.items()}
