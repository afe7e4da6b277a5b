"""What a pipeline run ends with: names of its models, figures for the run page, files to show."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sssflow.contracts.base import Contract
from sssflow.contracts.bundle import ModelBundle
from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.evaluation import EvaluationSummary, Figure
from sssflow.contracts.run import RunRecord
from sssflow.errors import DataError, InternalError, UsageError
from sssflow.pipeline.store import Store
from sssflow.storage.atomic import disk_errors, write_bytes
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import verified_path
from sssflow.storage.places import open_place

OUTPUTS = ("dataset", "warmup", "baseline", "headline", "evaluation", "bundle")
"""Named outputs of the pipeline; each is a pointer."""

_RUNS = ("warmup", "baseline", "headline")
_OURS = ".sssflow-results"
_FOLDERS = ("bundle", "metrics", "overlays", "predictions", "runs", "tensorboard")


@dataclass(frozen=True)
class Gathered:
    """The results of a run, read and checked.

    Attributes:
        summary: The evaluation.
        bundle: The exported model.
        runs: `warmup`, `baseline` and `headline` to their records.
        report: The report page among the gathered files.
    """

    summary: EvaluationSummary
    bundle: ModelBundle
    runs: Mapping[str, RunRecord]
    report: Path


@dataclass(frozen=True)
class LocalRunResult(Gathered):
    """What a finished local run left behind.

    Attributes:
        out: Folder with the results gathered for a reader.
        log: Everything the tasks said.
        wall_time_s: Duration of the run.
    """

    out: Path
    log: Path
    wall_time_s: float


class RunOutputs(Contract):
    """What a run ended with: a pointer for each of `OUTPUTS`."""

    schema_name: ClassVar[str] = "sssflow.run-outputs"

    dataset: str
    warmup: str
    baseline: str
    headline: str
    evaluation: str
    bundle: str


def note_outputs(store_uri: str, run_key: str, outputs: Mapping[str, str]) -> None:
    """Note in the store what a run ended with, for readers who know its key alone.

    KFP's API tells no outputs of a run. Equal keys mean equal inputs, so that a run whose tasks
    all came from the cache finds the note of the run that made them.
    """
    noted = RunOutputs(**outputs).to_json().encode()
    open_place(store_uri).put_bytes(_note(run_key), noted)


def noted_outputs(store_uri: str, run_key: str) -> dict[str, str]:
    """What `note_outputs` noted.

    Raises:
        DataError: Nothing is noted, or it cannot be read.
    """
    data = open_place(store_uri).get_bytes(_note(run_key)) if run_key else None
    where = f"{store_uri}/{_note(run_key)}"
    if data is None:
        raise DataError(
            "The store does not know what this run ended with.",
            where=where,
            action="Submit it again with --no-cache: what the store holds is found, and noted.",
        )
    noted = RunOutputs.from_json(data, where=where)
    return {name: getattr(noted, name) for name in OUTPUTS}


def _note(run_key: str) -> str:
    return f"runs/{run_key}.json"


def model_names(records: Sequence[RunRecord]) -> list[str]:
    """A name for each run: its method, numbered where a method comes twice."""
    methods = [record.method for record in records]
    return [
        method if methods.count(method) == 1 else f"{method}-{i}"
        for i, method in enumerate(methods, start=1)
    ]


def named_models(
    runs: Sequence[tuple[RunRecord, Path]],
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Paths of `model.json` (checked by digest) and of `run.json`, by the name of the model."""
    names = model_names([record for record, _ in runs])
    models = {
        name: verified_path(record.model, base=path.parent)
        for name, (record, path) in zip(names, runs, strict=True)
    }
    return models, {name: path for name, (_, path) in zip(names, runs, strict=True)}


def headline_metrics(summary: EvaluationSummary) -> dict[str, float | None]:
    """Scalars for the run page: strict means of each model, the gain, and SAM-2's Dice."""
    found: dict[str, float | None] = {}
    for model in summary.models:
        for metric, figure in model.strict.items():
            found[f"{model.name}_{metric}"] = figure.value
    if summary.gain is not None:
        found[f"gain_{summary.gain.metric}"] = summary.gain.gain
    for quality in summary.sam2:
        found["sam2_dice"] = quality.sam2.value
        found["coarse_dice"] = _value(quality.coarse)
    return found


def require_own_folder(out: Path) -> None:
    """Refuse a folder with other people's files of our names, before any work is done.

    Raises:
        UsageError: `out` holds such a folder and no mark of an earlier run.
    """
    if (out / _OURS).exists():
        return
    strangers = [name for name in (*_FOLDERS, "report.html") if (out / name).exists()]
    if strangers:
        raise UsageError(
            "The folder for the results holds something else.",
            where=out,
            expected="a new folder, or the one of an earlier run",
            found=", ".join(strangers),
            action="Choose another folder: results replace what has their names.",
        )


def collect(outputs: Mapping[str, str], out: Path, *, store: Store) -> Gathered:
    """Read and check every result, and copy what a reader wants from the store into `out`.

    Results of a store in S3 are brought here first, every file verified.

    `out` gets the evaluation's files, `bundle/`, `runs/<name>/` with `run.json` and `model/`,
    `tensorboard/<name>/` and `dataset.json`. Of the names that a run may leave, what was there
    before goes: predictions of a former model must not lie beside the report of another.

    Raises:
        InternalError: An output is missing: the run did not do all of its work.
        DataError: An output is not what its pointer says.
        UsageError: `out` is somebody else's folder.
    """
    missing = [name for name in OUTPUTS if not outputs.get(name)]
    if missing:
        raise InternalError(
            "The pipeline ended without all of its results.",
            expected=", ".join(OUTPUTS),
            found=f"missing: {', '.join(missing)}",
        )
    # Of the dataset its description alone: nobody asked for the scans.
    manifest, _ = store.follow(DatasetManifest, outputs["dataset"], lambda _: ())
    summary, summary_path = store.follow(EvaluationSummary, outputs["evaluation"])
    bundle, bundle_path = store.follow(ModelBundle, outputs["bundle"])
    runs = {name: store.follow(RunRecord, outputs[name]) for name in _RUNS}
    require_own_folder(out)
    with disk_errors(out):
        write_bytes(out / _OURS, b"")
        for name in _FOLDERS:
            if (out / name).is_dir():
                shutil.rmtree(out / name)
        save_contract(manifest, out / "dataset.json")
        shutil.copytree(bundle_path.parent, out / "bundle")
        for name, (record, path) in runs.items():
            _collect_run(record, path, out / "runs" / name)
            curves = path.parent / "tensorboard"
            if curves.is_dir():
                shutil.copytree(curves, out / "tensorboard" / name)
        _collect_evaluation(summary_path.parent, out)
    return Gathered(
        summary=summary,
        bundle=bundle,
        runs={name: record for name, (record, _) in runs.items()},
        report=verified_path(summary.files["report"], base=out),
    )


def _collect_run(record: RunRecord, run_path: Path, folder: Path) -> None:
    model = verified_path(record.model, base=run_path.parent)
    shutil.copytree(model.parent, folder / "model")
    write_bytes(folder / run_path.name, run_path.read_bytes())


def _collect_evaluation(folder: Path, out: Path) -> None:
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            _replace_tree(child, out / child.name)
        elif not child.name.startswith("."):
            write_bytes(out / child.name, child.read_bytes())


def _replace_tree(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value
