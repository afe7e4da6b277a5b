"""The folder of the masks: what of it is ours, what may be written, and its record.

A mask that this program did not make is never replaced or removed. So the record on disk names
every mask of ours at any moment, also that which a killed process was about to write.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sssflow.contracts.base import Sha256
from sssflow.contracts.model import TrainedModel
from sssflow.contracts.prediction import FailedScan, PredictedScan, PredictionSet
from sssflow.errors import DataError, UsageError
from sssflow.evaluation.config import EvaluateConfig
from sssflow.prediction.scans import FoundScans, find_scans
from sssflow.storage.atomic import disk_errors
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import verified_path
from sssflow.volume.nifti import read_nifti

RECORD_FILE = "predictions.json"
MAX_VOXELS = 1 << 27
"""Largest accepted scan, as `ingest.max_voxels`; checked before memory is taken for it."""

_TREATMENT = ("window", "test_time_flips", "largest_component")
"""Settings that change a mask; those of measuring and of the device do not."""
_ELSEWHERE = "Name another output folder, or remove this one."
_LOG = logging.getLogger(__name__)


def mask_file(name: str) -> str:
    """Name of the file of a mask."""
    return f"{name}.nii.gz"


def empty_record(config: EvaluateConfig, models: Sequence[TrainedModel]) -> PredictionSet:
    """The record before the first scan."""
    kept = EvaluateConfig.model_validate(config.model_dump(include=set(_TREATMENT)))
    return PredictionSet(
        model_digests=tuple(model.digest for model in models),
        config_digest=kept.digest(),
        class_names=models[0].class_names,
        warnings=tuple(w for model in models for w in model.warnings),
    )


def check(config: EvaluateConfig, models: Sequence[TrainedModel], scans: Path, out: Path) -> None:
    """Refuse what the run refuses before its first scan, without a network; nothing is written.

    Raises:
        DataError: There is no scan.
        UsageError: As `find_scans`, `refuse_among` and `MaskFolder.open`.
    """
    found = find_scans(scans)
    refuse_among(scans, out)
    MaskFolder.open(out, empty_record(config, models), found)


def refuse_among(scans: Path, out: Path) -> None:
    """Keep the masks out of the folder of the scans.

    Raises:
        UsageError: They are one folder.
    """
    if out.resolve() == (scans if scans.is_dir() else scans.parent).resolve():
        raise UsageError(
            "Masks would lie among the scans, and be taken for scans the next time.",
            where=out,
            action="Name another output folder.",
        )


@dataclass
class MaskFolder:
    """Masks of one set of models and settings, and their record.

    Attributes:
        out: The folder.
        empty: The record without scans.
        kept: File of each mask that is as it was made, to what is known of it.
        begun: Files of ours that are perhaps not whole: to be replaced without a question.
        failed: Scans of this call without a mask.
    """

    out: Path
    empty: PredictionSet
    kept: dict[str, PredictedScan] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    failed: list[FailedScan] = field(default_factory=list)

    @classmethod
    def open(cls, out: Path, empty: PredictionSet, scans: FoundScans) -> MaskFolder:
        """Look at what is there; nothing is written.

        Raises:
            UsageError: The folder has masks of other models or settings, a record that cannot be
                read, or a mask that would be replaced and is not ours, was changed by hand, or
                belongs to a scan of another file name.
        """
        folder = cls(out, empty)
        before = _earlier(out)
        if before is not None:
            folder._take_over(before)
        wanted = {mask_file(name): path.name for name, path in scans.files.items()}
        folder._refuse_foreign(wanted)
        for file, scan in wanted.items():
            if file in folder.kept and folder.kept[file].name != scan:
                raise UsageError(
                    "Two scans would have one mask.",
                    where=out / file,
                    expected=f"the mask of {scan}",
                    found=f"the mask of {folder.kept[file].name}",
                    action="Rename the scan, name another output folder, or remove this mask.",
                )
        return folder

    @property
    def record(self) -> PredictionSet:
        """What is known now, sorted by the names of the scans."""
        return self.empty.model_copy(
            update={
                "scans": tuple(sorted(self.kept.values(), key=lambda item: item.name)),
                "failed": tuple(self.failed),
                "begun": tuple(sorted(self.begun)),
            }
        )

    def has(self, file: str, digest: Sha256) -> bool:
        """Whether the mask of a scan of these bytes is there."""
        return file in self.kept and self.kept[file].source_sha256 == digest

    def begin(self, file: str) -> None:
        """Record that a mask will be written, so that it is known as ours after a kill."""
        if file in self.kept:
            _LOG.warning(
                "%s is made again: its scan %s is another one now", file, self.kept.pop(file).name
            )
        self.begun.add(file)
        self.save()

    def made(self, file: str, item: PredictedScan) -> None:
        """Take in a mask that was written."""
        self.begun.discard(file)
        self.kept[file] = item

    def fail(self, file: str, scan: FailedScan) -> None:
        """Take in a scan without a mask; that of an earlier call goes, for it would be believed."""
        with disk_errors(self.out / file):
            (self.out / file).unlink(missing_ok=True)
        self.begun.discard(file)
        self.kept.pop(file, None)
        self.failed.append(scan)

    def save(self) -> None:
        """Write the record."""
        save_contract(self.record, self.out / RECORD_FILE)

    def _take_over(self, before: PredictionSet) -> None:
        listed = {item.labels.uri: item for item in before.scans}
        there = [f for f in (*listed, *before.begun) if os.path.lexists(self.out / f)]
        if there:
            _refuse_mixture(self.out, before, self.empty, len(there))
        self.begun.update(file for file in before.begun if file in there)
        for file, item in listed.items():
            if file not in there:
                continue
            try:
                verified_path(item.labels, base=self.out)
                self.kept[file] = item
            except DataError:
                if not _reads(self.out / file):
                    self.begun.add(file)

    def _refuse_foreign(self, wanted: Collection[str]) -> None:
        ours = self.begun | self.kept.keys()
        foreign = [f for f in wanted if f not in ours and os.path.lexists(self.out / f)]
        if foreign:
            more = f" and {len(foreign) - 1} others" if len(foreign) > 1 else ""
            raise UsageError(
                "A file that this program did not write, or that was changed since, "
                "would be replaced by a mask.",
                where=self.out / foreign[0],
                expected=f"no such file, or one as {RECORD_FILE} beside it describes",
                found=f"{foreign[0]}{more}",
                action="Name another folder for the masks, or move these files away.",
            )


def _earlier(out: Path) -> PredictionSet | None:
    path = out / RECORD_FILE
    if not os.path.lexists(path):
        return None
    try:
        return load_contract(PredictionSet, path)
    except DataError as error:
        raise UsageError(
            "The record of the masks cannot be read, so whose they are is not known.",
            where=path,
            expected="what `sssflow predict` wrote",
            found=error.what,
            action=_ELSEWHERE,
        ) from None


def _refuse_mixture(out: Path, before: PredictionSet, now: PredictionSet, count: int) -> None:
    if before.model_digests != now.model_digests:
        what = "The folder holds masks of another model."
        expected, found = _short(now.model_digests), _short(before.model_digests)
    elif before.config_digest != now.config_digest:
        what = "The folder holds masks that were made with other settings."
        expected = f"the same evaluate.{', evaluate.'.join(_TREATMENT)}"
        found = "at least one of them differs"
    else:
        return
    raise UsageError(
        what,
        where=out / RECORD_FILE,
        expected=expected,
        found=f"{found} ({count} masks)",
        action=_ELSEWHERE,
    )


def _short(digests: Sequence[Sha256]) -> str:
    return "model " + " and ".join(digest[:12] for digest in digests)


def _reads(path: Path) -> bool:
    """Whether a file that is not as it was made is sound all the same: then a hand changed it."""
    try:
        read_nifti(path, max_voxels=MAX_VOXELS)
    except DataError:
        return False
    return True
