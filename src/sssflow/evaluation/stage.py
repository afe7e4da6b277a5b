"""The evaluate stage: predict, measure, compare, draw, report; `evaluation.json` comes last.

Writes below `out`: metrics/summary.json, metrics/cases.csv, overlays/*.png, predictions/<model>/,
report.html, evaluation.json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

from sssflow.contracts.base import ObjectRef, Sha256
from sssflow.contracts.dataset import LabelledCase
from sssflow.contracts.evaluation import EvaluationSummary, MaskQuality
from sssflow.contracts.model import TrainedModel
from sssflow.contracts.run import RunRecord
from sssflow.errors import UsageError
from sssflow.evaluation.aggregate import Resampling
from sssflow.evaluation.config import EvaluateConfig
from sssflow.evaluation.mask_quality import MaskGroup, comparable_cases, compare, load_masks
from sssflow.evaluation.metrics import CONVENTIONS
from sssflow.evaluation.pictures import Gallery, draw_overlays, viewer_cases
from sssflow.evaluation.predictions import PredictionStore, Scans, open_models, predict_case
from sssflow.evaluation.report.page import PageInput, render_within
from sssflow.evaluation.results import (
    CaseResult,
    ModelResult,
    TestSettings,
    check_result,
    model_figures,
    paired_gain,
    pairs_with_one_absent,
)
from sssflow.evaluation.seen import chosen_by, seen_notes, silent_notes
from sssflow.evaluation.tables import cases_csv, summary_json
from sssflow.networks.trained import MODEL_FILE, LoadedModel
from sssflow.storage.atomic import disk_errors, write_text
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, sha256_bytes, sha256_file

SUMMARY_FILE = "evaluation.json"
AVERAGE = "average"
"""Name of the mean of all models."""

_LOG = logging.getLogger(__name__)
_PACKAGES = ("sssflow", "torch", "numpy", "edt")
_SHOWN_FOR_MASKS = 2
_NO_RUNS: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True)
class _Inputs:
    """Everything that was read and checked before the first prediction.

    `shown` are cases outside the measured role that the viewer shows for their SAM-2 masks;
    `alarms` what must be read before any figure.
    """

    config: EvaluateConfig
    scans: Scans
    models: Mapping[str, LoadedModel]
    runs: Mapping[str, RunRecord]
    groups: tuple[MaskGroup, ...]
    measured: tuple[LabelledCase, ...]
    shown: tuple[LabelledCase, ...]
    alarms: tuple[str, ...]

    @property
    def descriptions(self) -> dict[str, TrainedModel]:
        """Name to what each model says of itself."""
        return {name: model.description for name, model in self.models.items()}

    @property
    def tests(self) -> TestSettings:
        """How intervals and tests are made."""
        config = self.config
        resampling = Resampling(config.bootstrap_resamples, config.confidence, config.seed)
        return TestSettings(resampling, config.permutation_flips)


def run(
    config: EvaluateConfig,
    dataset: Path,
    models: Mapping[str, Path],
    out: Path,
    *,
    runs: Mapping[str, Path] = _NO_RUNS,
    masks: Sequence[Path] = (),
    prompts: Sequence[Path] = (),
) -> EvaluationSummary:
    """Measure models on the cases of a role that has masks.

    Args:
        config: What and how to measure.
        dataset: Path of manifest.json.
        models: Name to model.json; the first is the baseline, the last the headline.
        out: Folder for everything; what an earlier run left there is replaced.
        runs: Name to run.json, for curves and wall times; names are those of `models`.
        masks: Paths of masks.json to compare with the truth.
        prompts: Paths of the prompts.json that the masks came from.

    Raises:
        UsageError: No model, a bad name, a run of another model, or a measured case whose labels a
            model was trained on.
        DataError: An input is missing, damaged, of another dataset or of other classes.
        UnavailableError: The disk is full or read-only.
        InternalError: A metric breaks an identity.
    """
    inputs = _open(config, dataset, models, runs, load_paths=(masks, prompts))
    with disk_errors(out):  # nobody may trust files that are being replaced
        (out / SUMMARY_FILE).unlink(missing_ok=True)
    store = PredictionStore(out)
    store.clear()
    predictions: dict[str, dict[str, ObjectRef]] = {}
    results = []
    for name, members in _measured_models(inputs).items():
        result, predictions[name] = _measure(inputs, name, members, store)
        check_result(result)
        results.append(result)
    gallery = Gallery(inputs.scans, store, results, predictions, inputs.groups)
    overlays = draw_overlays(gallery, config, out)
    summary = _summarise(inputs, results).model_copy(
        update={"overlays": overlays, "predictions": predictions}
    )
    files = _write_files(inputs, summary, gallery, out)
    summary = summary.model_copy(update={"files": files})
    save_contract(summary, out / SUMMARY_FILE)
    _LOG.info("evaluation written to %s", out / SUMMARY_FILE)
    return summary


def _open(
    config: EvaluateConfig,
    dataset: Path,
    models: Mapping[str, Path],
    runs: Mapping[str, Path],
    *,
    load_paths: tuple[Sequence[Path], Sequence[Path]],
) -> _Inputs:
    scans = Scans.open(dataset)
    loaded = open_models(models, scans.manifest, config.device)
    unknown = sorted(set(runs) - set(loaded))
    if unknown:
        raise UsageError(
            "A run belongs to no model.", expected=", ".join(loaded), found=", ".join(unknown)
        )
    records = {name: _run_of(name, runs[name], models[name]) for name in loaded if name in runs}
    _check_average(config, loaded)
    groups = load_masks(scans, *load_paths)
    measured = scans.measured(config)
    about = {name: model.description for name, model in loaded.items()}
    return _Inputs(
        config=config,
        scans=scans,
        models=loaded,
        runs=records,
        groups=groups,
        measured=measured,
        shown=_shown_for_masks(scans, groups, measured),
        alarms=(
            *seen_notes(about, measured, allow_seen=config.allow_seen),
            *(f"Model {name}: {told}" for name, model in about.items() for told in model.warnings),
        ),
    )


def _run_of(name: str, path: Path, model: Path) -> RunRecord:
    """The record of the training that `model` came from.

    Raises:
        UsageError: It is the record of another model.
    """
    record = load_contract(RunRecord, path)
    found = sha256_file(model / MODEL_FILE if model.is_dir() else model)
    if record.model.sha256 != found:
        raise UsageError(
            "A run is not the one that its model came from.",
            where=f"{name}: {path}",
            expected=f"the run of the {MODEL_FILE} with SHA-256 {found[:12]}…",
            found=f"the run of one with SHA-256 {record.model.sha256[:12]}…",
            action=f"Give the run.json that lies beside the folder of {name}'s model.",
        )
    return record


def _check_average(config: EvaluateConfig, models: Mapping[str, LoadedModel]) -> None:
    if config.average and (len(models) < 2 or AVERAGE in models):
        raise UsageError(
            "An average needs two models or more, and its name for itself.",
            where="evaluate.average",
            expected=f"two models, none of them named {AVERAGE}",
            found=", ".join(models),
            action="Give a second --model, or set evaluate.average=false.",
        )


def _shown_for_masks(
    scans: Scans, groups: Sequence[MaskGroup], measured: Sequence[LabelledCase]
) -> tuple[LabelledCase, ...]:
    """A few cases with SAM-2 masks, if no measured case has any."""
    with_masks = {c.case_id: c for group in groups for c in comparable_cases(group, scans)}
    if any(case.case_id in with_masks for case in measured):
        return ()
    return tuple(with_masks[case_id] for case_id in sorted(with_masks)[:_SHOWN_FOR_MASKS])


def _measured_models(inputs: _Inputs) -> dict[str, tuple[LoadedModel, ...]]:
    """Name to the models whose mean is measured under it."""
    measured: dict[str, tuple[LoadedModel, ...]] = {
        name: (model,) for name, model in inputs.models.items()
    }
    if inputs.config.average:
        measured[AVERAGE] = tuple(inputs.models.values())
    return measured


def _measure(
    inputs: _Inputs, name: str, members: Sequence[LoadedModel], store: PredictionStore
) -> tuple[ModelResult, dict[str, ObjectRef]]:
    config, scans = inputs.config, inputs.scans
    measured = {case.case_id for case in inputs.measured}
    cases = (*inputs.measured, *inputs.shown)
    refs: dict[str, ObjectRef] = {}
    found: list[CaseResult] = []
    for case in cases:
        labels = predict_case(scans, members, case, config)
        refs[case.case_id] = store.write(name, case, labels, nifti=config.write_nifti)
        if case.case_id not in measured:
            continue
        found.append(scans.score(case, labels, scans.truth(case), config.nsd_tolerances_mm))
        _LOG.info("%s: measured %d of %d: %s", name, len(found), len(measured), case.case_id)
    digest, method, step = _identity(members)
    return ModelResult(name, digest, method, step, tuple(found)), refs


def _identity(members: Sequence[LoadedModel]) -> tuple[Sha256, str, int]:
    """Digest, method and step; of an average the digest of its members' and no step."""
    about = members[0].description
    if len(members) == 1:
        return members[0].digest, about.method, about.step
    methods = " and ".join(model.description.method for model in members)
    joined = "".join(model.digest for model in members)
    return sha256_bytes(joined.encode()), f"mean of {methods}", 0


def _summarise(inputs: _Inputs, results: Sequence[ModelResult]) -> EvaluationSummary:
    manifest, tests = inputs.scans.manifest, inputs.tests
    first, last = results[0], results[-1]
    return EvaluationSummary(
        dataset_name=manifest.name,
        dataset_digest=manifest.digest,
        split_rule=manifest.split_rule,
        roles=tuple(sorted({case.role.value for case in inputs.measured})),
        cases=len(inputs.measured),
        patients=len({case.patient_id for case in inputs.measured}),
        distance_unit="mm" if inputs.scans.spacing_known else "voxel",
        class_names=manifest.class_names,
        config=inputs.config.model_dump(mode="json"),
        config_digest=inputs.config.digest(),
        versions=_versions(),
        conventions=CONVENTIONS,
        models=tuple(model_figures(result, manifest.class_names, tests) for result in results),
        gain=paired_gain(last, first, tests) if len(results) > 1 else None,
        sam2=_mask_quality(inputs),
        files={},
        notes=_notes(inputs, results),
    )


def _mask_quality(inputs: _Inputs) -> tuple[MaskQuality, ...]:
    tolerances = inputs.config.nsd_tolerances_mm
    found = [
        compare(group, inputs.scans, tolerances=tolerances, settings=inputs.tests)
        for group in inputs.groups
    ]
    return tuple(quality for quality in found if quality is not None)


def _notes(inputs: _Inputs, results: Sequence[ModelResult]) -> tuple[str, ...]:
    notes = list(inputs.alarms)
    unequal = pairs_with_one_absent(results[-1], results[0])
    if unequal:
        notes.append(
            f"In {unequal} pair(s) one model leaves an absent structure empty, as it should, and "
            "the other invents it. The paired gain counts that as 1 against 0, while the mean of "
            "the first leaves the case out: the gain may differ from the difference of the means."
        )
    for name, model in inputs.models.items():
        if model.description.dataset_digest != inputs.scans.manifest.digest:
            notes.append(f"Model {name} was trained on another dataset than the measured one.")
    notes += silent_notes(inputs.descriptions)
    if inputs.groups and not any(comparable_cases(g, inputs.scans) for g in inputs.groups):
        notes.append("The SAM-2 masks hold no validation or test case: they are not measured.")
    return tuple(notes)


def _write_files(
    inputs: _Inputs, summary: EvaluationSummary, gallery: Gallery, out: Path
) -> dict[str, ObjectRef]:
    config, scans, results = inputs.config, inputs.scans, gallery.results
    gains = [
        paired_gain(results[-1], results[0], inputs.tests, metric=metric)
        for metric in results[-1].strict_metrics
        if len(results) > 1
    ]
    summary_text = summary_json(
        summary,
        results,
        predictions={
            m: {k: r.uri for k, r in refs.items()} for m, refs in summary.predictions.items()
        },
        references={case.case_id: case.label.uri for case in inputs.measured},
        metric_gains=[gain for gain in gains if gain is not None],
    )
    page = PageInput(
        title=config.report.title,
        summary=summary,
        results=results,
        runs=inputs.runs,
        manifest=scans.manifest,
        viewer=viewer_cases(gallery, config.report, inputs.shown),
        data_note=config.report.data_note,
        alarms=inputs.alarms,
        chosen_by=chosen_by(inputs.descriptions, inputs.measured),
    )
    texts = {
        "summary": (out / "metrics" / "summary.json", summary_text),
        "cases": (out / "metrics" / "cases.csv", cases_csv(results, summary.class_names)),
        "report": (
            out / "report.html",
            render_within(page, int(config.report.size_limit_mb * 1e6)),
        ),
    }
    for path, text in texts.values():
        write_text(path, text)
    return {name: reference(path, base=out) for name, (path, _) in texts.items()}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[name] = "unknown"
    return found
