"""Predict cases on their own grid, keep the predictions as files, read them back.

Axis letters: s slices, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import Case, DatasetManifest, LabelledCase, Role
from sssflow.contracts.model import Preprocessing
from sssflow.errors import DataError, UsageError
from sssflow.evaluation.config import EvaluateConfig
from sssflow.evaluation.distances import Spacing
from sssflow.evaluation.metrics import measure_case
from sssflow.evaluation.results import CaseResult
from sssflow.networks.device import choose_device
from sssflow.networks.memory import volume_fits
from sssflow.networks.postprocess import (
    flip_averaged_probabilities,
    largest_component_per_class,
    mean_probabilities,
)
from sssflow.networks.predict import predict_labels, predict_probabilities
from sssflow.networks.trained import LoadedModel, load_model
from sssflow.networks.volumes import with_window
from sssflow.storage.atomic import disk_errors
from sssflow.storage.contracts import load_contract
from sssflow.volume.geometry import voxel_volume_mm3
from sssflow.volume.intensity import normalise, require_units
from sssflow.volume.nifti import write_label_like
from sssflow.volume.packed import read_packed, write_packed

Labels = NDArray[np.uint8]

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_PACKED = ".b2nd"
_NIFTI = ".nii.gz"


@dataclass(frozen=True)
class Scans:
    """A packed dataset opened for measuring."""

    manifest: DatasetManifest
    base: Path

    @classmethod
    def open(cls, path: Path) -> Scans:
        """Read `manifest.json`.

        Raises:
            DataError: Missing, or not a manifest.
        """
        return cls(load_contract(DatasetManifest, path), path.parent)

    def image(self, case: Case) -> NDArray[np.generic]:
        """Raw intensities (s, h, w)."""
        return read_packed(case.image, base=self.base, shape=case.grid.shape_shw)

    def truth(self, case: LabelledCase) -> Labels:
        """The mask (s, h, w) of a case that has one."""
        truth = read_packed(case.label, base=self.base, shape=case.grid.shape_shw)
        if truth.size and int(truth.max()) >= self.manifest.class_count:
            raise DataError(
                "A mask holds a class that the manifest does not name.",
                where=case.case_id,
                expected=f"0 to {self.manifest.class_count - 1}",
                found=int(truth.max()),
                action="Pack the dataset again.",
            )
        return truth.astype(np.uint8)

    @property
    def spacing_known(self) -> bool:
        """Whether every case has a spacing: one without makes all distances voxels."""
        return all(case.grid.spacing_known for case in self.manifest.cases)

    def measuring_spacing(self, case: Case) -> Spacing | None:
        """Spacing to measure `case` with; None: in voxels, as the whole dataset then is."""
        return case.grid.spacing_shw_mm if self.spacing_known else None

    def score(
        self, case: LabelledCase, labels_shw: Labels, truth_shw: Labels, tolerances: Sequence[float]
    ) -> CaseResult:
        """All measures of one mask of a case against its truth, both on the case's grid."""
        measures = measure_case(
            labels_shw,
            truth_shw,
            class_count=self.manifest.class_count,
            spacing_shw_mm=self.measuring_spacing(case),
            nsd_tolerances=tolerances,
            voxel_mm3=voxel_volume_mm3(case.grid),
        )
        return CaseResult(case.case_id, case.patient_id, Role(case.role), measures)

    def measured(self, config: EvaluateConfig) -> tuple[LabelledCase, ...]:
        """The cases to measure, sorted by id.

        Raises:
            DataError: No case has a role that is asked for.
        """
        wanted = config.roles or self._default_roles()
        cases = [case for role in set(wanted) for case in self.manifest.labelled(role)]
        if not cases:
            raise DataError(
                "No case can be measured.",
                where=self.manifest.name,
                expected="cases of role " + " or ".join(config.roles or ("test", "validation")),
                found="none",
                action="Pack the dataset with test or validation patients, or name roles that it "
                "has with --set evaluate.roles=[...].",
            )
        return tuple(sorted(cases, key=lambda case: case.case_id))

    def _default_roles(self) -> tuple[Role, ...]:
        return (Role.TEST,) if self.manifest.labelled(Role.TEST) else (Role.VALIDATION,)


@dataclass(frozen=True)
class PredictionStore:
    """Where predictions lie: `<out>/predictions/<model>/<case>.b2nd`."""

    out: Path

    def write(self, model: str, case: Case, labels_shw: Labels, *, nifti: bool) -> ObjectRef:
        """Store one prediction; with `nifti` also on the grid of the source file."""
        folder = self.out / "predictions" / model
        if nifti:
            write_label_like(folder / f"{case.case_id}{_NIFTI}", labels_shw, case.grid)
        return write_packed(folder / f"{case.case_id}{_PACKED}", labels_shw, base=self.out)

    def clear(self) -> None:
        """Remove the predictions of an earlier evaluation; a folder that holds more stays whole.

        Raises:
            UnavailableError: The disk is read-only or refuses access.
        """
        with disk_errors(self.out):
            for folder in sorted(self.out.glob("predictions/*")):
                if folder.is_symlink() or not folder.is_dir():
                    continue
                files = sorted(folder.iterdir())
                if any(path.suffix == _PACKED for path in files) and all(map(_is_ours, files)):
                    for path in files:
                        path.unlink()
                    folder.rmdir()

    def read(self, ref: ObjectRef, case: Case) -> Labels:
        """What `write` stored."""
        return read_packed(ref, base=self.out, shape=case.grid.shape_shw).astype(np.uint8)


def open_models(
    models: Mapping[str, Path], manifest: DatasetManifest, device: str
) -> dict[str, LoadedModel]:
    """Load every model and hold it to the classes of the dataset.

    Raises:
        UsageError: No model, or a name that cannot be a folder.
        DataError: A model cannot be read or was trained on other classes.
    """
    if not models:
        raise UsageError("At least one model is needed.", action="Give --model name=model.json.")
    loaded = {}
    for name, path in models.items():
        if not name or name[0] in ".-" or not _NAME_CHARACTERS.issuperset(name):
            raise UsageError(
                "A model name must be letters, digits, dot, dash or underscore.", found=repr(name)
            )
        model = load_model(path, device=choose_device(device))
        if model.description.class_names != manifest.class_names:
            raise DataError(
                "The model was trained on other classes than the dataset has.",
                where=f"{name}: {path}",
                expected=", ".join(manifest.class_names),
                found=", ".join(model.description.class_names),
            )
        loaded[name] = model
    return loaded


def _is_ours(path: Path) -> bool:
    return path.name.endswith((_PACKED, _NIFTI)) and path.is_file()


def predict_case(
    scans: Scans, models: Sequence[LoadedModel], case: Case, config: EvaluateConfig
) -> Labels:
    """Labels (s, h, w) of a case on its own grid; see `predict_volume`.

    Raises:
        DataError: It does not fit into memory.
        UsageError: An 8-bit image for a model whose intensity rule reads its own units.
    """
    for model in models:
        require_units(model.description.preprocessing.intensity, case.quantised, case.case_id)
    with volume_fits(case.case_id):
        return predict_volume(scans.image(case), models, config)


def predict_volume(
    image_shw: NDArray[np.generic], models: Sequence[LoadedModel], config: EvaluateConfig
) -> Labels:
    """Labels (s, h, w) of raw intensities, on their grid.

    Several models: arg-max of the mean of their probabilities. `config` says how many slices go
    at a time, how patches cover a volume, and what is done to the prediction.
    """
    if len(models) == 1 and not config.test_time_flips:
        labels = predict_labels(
            models[0].net,
            *_input(image_shw, models[0], config),
            batch_slices=config.batch_slices,
        )
    else:
        predict = flip_averaged_probabilities if config.test_time_flips else predict_probabilities
        parts = [
            predict(m.net, *_input(image_shw, m, config), batch_slices=config.batch_slices)
            for m in models
        ]
        labels = mean_probabilities(parts).argmax(0).astype(np.uint8)
    if config.largest_component:
        return largest_component_per_class(labels, len(models[0].description.class_names))
    return labels


def _input(
    image_shw: NDArray[np.generic], model: LoadedModel, config: EvaluateConfig
) -> tuple[NDArray[np.float32], Preprocessing]:
    rule = model.description.preprocessing
    if rule.patch is not None:
        rule = rule.model_copy(update={"patch": with_window(rule.patch, config.window)})
    return normalise(image_shw, rule.intensity), rule
