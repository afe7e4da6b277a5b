"""From checked voxels to packed files, beside the target first, published together.

Order: arrays into a hidden folder; then the old manifest (if any) goes, the arrays move into
place, and the new manifest comes last. A kill at any moment leaves either the old dataset or a
folder without a manifest, which no reader takes for a dataset.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, UnlabelledCase
from sssflow.errors import DataError, UsageError
from sssflow.ingest.config import StoreConfig
from sssflow.ingest.quantise import quantise
from sssflow.ingest.split import AssignedCase
from sssflow.ingest.verify import CheckedCase
from sssflow.storage.atomic import disk_errors, fsync_folder, sweep_leftovers
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.volume.packed import write_packed

_STAGING = ".sssflow-packing"
_MANIFEST = "manifest.json"
_PARTS = ("images", "labels")
_SUFFIX = ".b2nd"
_LOG = logging.getLogger(__name__)


class Packer:
    """Writes the cases of one dataset. Use `publish` or `discard` at the end."""

    def __init__(self, out: Path, store: StoreConfig) -> None:
        """Prepare `out`; leftovers of a killed run are removed.

        Raises:
            UsageError: `out` holds an `images` or `labels` folder with files that are not ours.
            UnavailableError: The disk is read-only.
        """
        self._out = out
        self._store = store
        self._made_out = not out.exists()
        self._replacing = False
        self._staging = out / _STAGING
        _refuse_foreign_files(out)
        with disk_errors(out):
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir(parents=True)
        sweep_leftovers(out)

    def add(self, case: AssignedCase, checked: CheckedCase) -> LabelledCase | UnlabelledCase:
        """Write one case and describe it for the manifest.

        Raises:
            UnavailableError: The disk is full.
            UsageError: The case is CT and the store has 8 bits.
        """
        name = f"{case.source.case_id}{_SUFFIX}"
        image, quantised = checked.image_shw, None
        if self._store.kind == "uint8":
            image, quantised = quantise(
                image, self._store, case.source.modality, where=case.source.case_id
            )
        fields = {
            "case_id": case.source.case_id,
            "patient_id": case.source.patient_id,
            "phase": case.source.phase,
            "modality": case.source.modality,
            "grid": checked.grid,
            "role": case.role,
            "image": write_packed(
                self._staging / "images" / name,
                image,
                base=self._staging,
                smallest=quantised is not None,
            ),
            "quantised": quantised,
        }
        if checked.label_shw is None:
            return UnlabelledCase.model_validate(fields)
        label = write_packed(self._staging / "labels" / name, checked.label_shw, base=self._staging)
        return LabelledCase.model_validate({**fields, "label": label})

    def publish(self, manifest: DatasetManifest) -> Path:
        """Move the arrays into place and write the manifest last; returns its path.

        A warning says so where that replaces a dataset of another digest.

        Raises:
            UnavailableError: The disk is full or read-only.
        """
        path = self._out / _MANIFEST
        former = _digest(path)
        # Written while an older dataset is still whole: from here on only names change.
        staged = save_contract(manifest, self._staging / _MANIFEST)
        with disk_errors(path):
            self._replacing = True
            path.unlink(missing_ok=True)
            for part in _PARTS:
                shutil.rmtree(self._out / part, ignore_errors=True)
                if (self._staging / part).exists():
                    (self._staging / part).rename(self._out / part)
            fsync_folder(self._out)
            staged.rename(path)
            fsync_folder(self._out)
            self._staging.rmdir()
        if former is not None and former != manifest.digest:
            _LOG.warning(
                "the dataset %s replaces the dataset %s: models, prompts and masks that were made "
                "from the former do not fit it",
                manifest.digest[:12],
                former[:12],
            )
        return path

    def discard(self) -> None:
        """Remove everything that this run wrote; an older dataset stays if it is still whole."""
        shutil.rmtree(self._staging, ignore_errors=True)
        if self._replacing and not (self._out / _MANIFEST).exists():
            for part in _PARTS:
                shutil.rmtree(self._out / part, ignore_errors=True)
        if self._made_out and self._out.is_dir() and not any(self._out.iterdir()):
            self._out.rmdir()


def _digest(path: Path) -> str | None:
    """Digest of the dataset of a manifest; None without one, or if it cannot be read."""
    try:
        return load_contract(DatasetManifest, path).digest
    except DataError:
        return None


def _refuse_foreign_files(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError("The output is a file.", where=out, expected="a folder")
    for part in _PARTS:
        folder = out / part
        foreign = [p for p in folder.iterdir() if p.suffix != _SUFFIX] if folder.is_dir() else []
        if folder.is_symlink() or foreign:
            raise UsageError(
                "The output folder holds files that are not a packed dataset.",
                where=folder,
                found=foreign[0].name if foreign else "a link",
                action="Choose an empty folder for the dataset.",
            )


def refuse_nested(source: Path, out: Path) -> None:
    """Keep the dataset out of the scans and the scans out of the dataset.

    Raises:
        UsageError: One folder lies in the other.
        DataError: A path cannot be followed.
    """
    try:
        here, there = source.resolve(), out.resolve()
    except (OSError, RuntimeError) as error:
        raise DataError("The path cannot be followed.", where=source, found=error) from None
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(
            "Source and output lie in each other.",
            where=out,
            expected=f"a folder apart from {source}",
            action="Choose another output folder.",
        )
