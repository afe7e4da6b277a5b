"""summary.json with nnU-Net's keys and ours, and cases.csv with one row per case, class, model."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sssflow.contracts.evaluation import EvaluationSummary, PairedGain
from sssflow.evaluation.metrics import SSL4MIS_NAMES, ClassMeasures
from sssflow.evaluation.results import CaseResult, ModelResult

FilesOfCases = Mapping[str, str]

_COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")


def cases_csv(results: Sequence[ModelResult], class_names: Sequence[str]) -> str:
    """One row per model, case and class; an empty field is a value that does not exist.

    Columns carry their unit; `strict_` and `ssl4mis_` name the convention.
    """
    strict = results[0].strict_metrics
    header = [
        *("model", "case_id", "patient_id", "role", "class_index", "class_name", "presence"),
        *("truth_voxels", "prediction_voxels"),
        *(f"strict_{name}" for name in strict),
        *(f"ssl4mis_{name}" for name in SSL4MIS_NAMES),
        *(f"{name}_voxels" for name in _COUNTS),
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for result in results:
        for case in result.cases:
            for index, measures in sorted(case.measures.items()):
                identity = (result.name, case.case_id, case.patient_id, case.role.value)
                row = (*identity, index, class_names[index], measures.presence.value)
                writer.writerow([*row, *_numbers(measures, strict)])
    return text.getvalue()


def summary_json(
    summary: EvaluationSummary,
    results: Sequence[ModelResult],
    *,
    predictions: Mapping[str, FilesOfCases],
    references: FilesOfCases,
    metric_gains: Sequence[PairedGain],
) -> str:
    """nnU-Net's keys for the headline model (the last), the same for all models, and ours.

    Where nnU-Net writes NaN (both masks empty) this writes null. Means are over the defined
    values, with the strict convention.

    Args:
        summary: The stage's contract, for everything that goes with the numbers.
        results: One per model, the last one is the headline.
        predictions: Model name, then case id, to the file of the prediction.
        references: Case id to the file of the truth.
        metric_gains: Paired gains of the last model over the first, one per metric.
    """
    trees = {r.name: _nnunet_tree(r, predictions.get(r.name, {}), references) for r in results}
    document: dict[str, Any] = {
        **trees[results[-1].name],
        "headline_model": results[-1].name,
        "models": trees,
        "figures": [m.model_dump(mode="json") for m in summary.models],
        "paired": [gain.model_dump(mode="json") for gain in metric_gains],
        "sam2": [quality.model_dump(mode="json") for quality in summary.sam2],
        "conventions": summary.conventions,
        "distance_unit": summary.distance_unit,
        "class_names": list(summary.class_names),
        "roles": list(summary.roles),
        "cases": summary.cases,
        "patients": summary.patients,
        "split_rule": summary.split_rule,
        "dataset_name": summary.dataset_name,
        "dataset_digest": summary.dataset_digest,
        "config": summary.config,
        "config_digest": summary.config_digest,
        "versions": summary.versions,
        "notes": list(summary.notes),
    }
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _numbers(measures: ClassMeasures, strict: Sequence[str]) -> list[str]:
    values: list[float | int | None] = [measures.truth_voxels, measures.prediction_voxels]
    values += [measures.strict[name] for name in strict]
    values += [measures.ssl4mis[name] for name in SSL4MIS_NAMES]
    values += [getattr(measures, name) for name in _COUNTS]
    return ["" if v is None else str(v) if isinstance(v, int) else f"{v:.6g}" for v in values]


def _nnunet_tree(
    result: ModelResult, predictions: FilesOfCases, references: FilesOfCases
) -> dict[str, Any]:
    classes = sorted(result.cases[0].measures)
    per_case = [
        {
            "metrics": {str(i): _nnunet_metrics(case.measures[i]) for i in classes},
            "prediction_file": predictions.get(case.case_id),
            "reference_file": references.get(case.case_id),
            **_identity(case),
        }
        for case in result.cases
    ]
    names = list(_nnunet_metrics(result.cases[0].measures[classes[0]]))
    mean = {
        str(i): {
            name: _mean([_nnunet_metrics(case.measures[i])[name] for case in result.cases])
            for name in names
        }
        for i in classes
    }
    foreground = {name: _mean([mean[str(i)][name] for i in classes]) for name in names}
    return {"metric_per_case": per_case, "mean": mean, "foreground_mean": foreground}


def _identity(case: CaseResult) -> dict[str, str]:
    return {"case_id": case.case_id, "patient_id": case.patient_id, "role": case.role.value}


def _nnunet_metrics(measures: ClassMeasures) -> dict[str, float | None]:
    ours = {k: v for k, v in measures.strict.items() if k not in ("dice", "iou")}
    return {
        "Dice": measures.strict["dice"],
        "IoU": measures.strict["iou"],
        "TP": measures.true_positive,
        "FP": measures.false_positive,
        "FN": measures.false_negative,
        "TN": measures.true_negative,
        "n_pred": measures.prediction_voxels,
        "n_ref": measures.truth_voxels,
        **ours,
        **{f"ssl4mis_{name}": value for name, value in measures.ssl4mis.items()},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
