"""The report: one HTML file that needs nothing else, not even JavaScript for its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.evaluation import EvaluationSummary, Figure, ModelFigures, p_text
from sssflow.contracts.run import RunRecord
from sssflow.evaluation.drawing import hex_colour
from sssflow.evaluation.metrics import SSL4MIS_NAMES, ClassMeasures, Presence
from sssflow.evaluation.report import words
from sssflow.evaluation.report.charts import COLOURS, Group, Line, line_chart, strip_chart
from sssflow.evaluation.report.sprites import ViewerCase
from sssflow.evaluation.results import ModelResult, worst_first


@dataclass(frozen=True)
class PageInput:
    """All that the page shows.

    `viewer` may be shortened until the page is small enough; nothing else is. `alarms` and
    `chosen_by` (models whose kept step measured cases chose) are told at the head of the page.
    """

    title: str
    summary: EvaluationSummary
    results: Sequence[ModelResult]
    runs: Mapping[str, RunRecord]
    manifest: DatasetManifest
    viewer: Sequence[ViewerCase]
    data_note: str = ""
    alarms: Sequence[str] = ()
    chosen_by: Sequence[str] = ()


def render_within(page: PageInput, limit_bytes: int) -> str:
    """The page; cases leave the viewer from the end until it is below the limit.

    Without any case left the page is returned whatever its size: numbers are never dropped.
    """
    viewer = list(page.viewer)
    while True:
        kept = PageInput(**{**page.__dict__, "viewer": tuple(viewer)})
        html = render(kept, dropped=len(page.viewer) - len(viewer))
        if len(html.encode()) <= limit_bytes or not viewer:
            return html
        viewer.pop()


def render(page: PageInput, *, dropped: int = 0) -> str:
    """HTML of the page; equal input gives equal text."""
    environment = Environment(
        loader=PackageLoader("sssflow.evaluation.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summary = page.summary
    first = words.first_caveats(
        alarms=page.alarms, chosen_by=page.chosen_by, phantoms=is_phantom(page.manifest)
    )
    caveats = [*first, *words.further_caveats(summary, told=first)]
    template = environment.get_template("report.html")
    return template.render(
        title=page.title,
        summary=summary,
        headline=words.headline(summary),
        interval=words.confidence(summary),
        tiles=_tiles(summary),
        strict_columns=_columns(summary.models, strict=True),
        ssl4mis_columns=_columns(summary.models, strict=False),
        class_rows=_class_rows(summary),
        case_table=_case_table(page),
        distribution=_distribution(page),
        curves=_curves(page),
        viewer=page.viewer,
        prompted=any(case.layer("prompts") for case in page.viewer),
        dropped=dropped,
        model_colours=COLOURS,
        colours=[(name, hex_colour(i)) for i, name in enumerate(summary.class_names) if i],
        masks=[_mask_row(m.masks, m.cases, m.coarse, m.sam2, m.gain) for m in summary.sam2],
        provenance=_provenance(page),
        runs=[_run_row(name, run) for name, run in page.runs.items()],
        alarms=page.alarms,
        boxed=caveats[: max(len(first), 2)],
        caveats=caveats + ([page.data_note] if page.data_note else []),
        conventions=summary.conventions,
    )


def is_phantom(manifest: DatasetManifest) -> bool:
    """Whether the manifest says that its scans were drawn by `sssflow data phantoms`."""
    said = (manifest.name, manifest.source_layout, manifest.split_rule)
    cases = (manifest.cases[0].patient_id, manifest.cases[0].case_id)
    return any("phantom" in text.lower() for text in (*said, *cases))


def _tiles(summary: EvaluationSummary) -> list[dict[str, str]]:
    tiles = []
    models = summary.models if len(summary.models) < 4 else (summary.models[0], summary.models[-1])
    for model in models:
        dice = model.strict["dice"]
        value = "–" if dice.value is None else f"{words.number(dice.value, 'dice')}\u00a0%"
        span = words.span(dice, "dice")
        note = f"{words.confidence(summary)} {span}" if span else "no interval"
        tiles.append({"name": f"Dice, {model.name}", "value": value, "note": note})
    if summary.gain is not None:
        gain = summary.gain
        note = p_text(gain.p_value)
        if gain.low is not None and gain.high is not None:
            note = f"{words.points(gain.low)} to {words.points(gain.high)}; {note}"
        value = f"{words.points(gain.gain)} points"
        name = f"Gain in Dice, paired{_ends([m.name for m in summary.models])}"
        tiles.append({"name": name, "value": value, "note": note})
    note = f"{words.plural(summary.patients, 'patient')}, role {' and '.join(summary.roles)}"
    tiles.append({"name": "Measured", "value": words.plural(summary.cases, "case"), "note": note})
    return tiles


def _columns(models: Sequence[ModelFigures], *, strict: bool) -> dict[str, Any]:
    metrics = list(models[0].strict) if strict else list(SSL4MIS_NAMES)
    rows = []
    for position, model in enumerate(models):
        figures = model.strict if strict else model.ssl4mis
        cells = [_cell(figures[metric], metric) for metric in metrics]
        excluded = figures["dice"].excluded if strict else figures["hd95_voxel"].excluded
        rows.append({"name": model.name, "colour": position, "cells": cells, "excluded": excluded})
    return _table(metrics, rows)


def _table(metrics: Sequence[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Titles and rows; without the column of what was left out where that is nothing."""
    return {
        "titles": [words.metric_title(metric) for metric in metrics],
        "rows": rows,
        "left_out": any(row["excluded"] for row in rows),
    }


def _cell(figure: Figure, metric: str) -> dict[str, Any]:
    sort = "" if figure.value is None else f"{figure.value:.6g}"
    value = words.number(figure.value, metric)
    return {"value": value, "span": words.span(figure, metric), "sort": sort}


def _class_rows(summary: EvaluationSummary) -> dict[str, Any]:
    metrics = list(summary.models[0].strict)
    rows = []
    for index, name in enumerate(summary.class_names[1:], start=1):
        for position, model in enumerate(summary.models):
            figures = model.per_class[name]
            rows.append(
                {
                    "class": name,
                    "colour": hex_colour(index),
                    "first": position == 0,
                    "span": len(summary.models),
                    "model": model.name,
                    "model_colour": position,
                    "cells": [_cell(figures[metric], metric) for metric in metrics],
                    "excluded": figures["dice"].excluded,
                }
            )
    return _table(metrics, rows)


def _case_table(page: PageInput) -> dict[str, Any]:
    metrics = _case_metrics(len(page.results), page.summary.distance_unit)
    shown = {case.case_id: i for i, case in enumerate(page.viewer)}
    by_model = [{case.case_id: case for case in result.cases} for result in page.results]
    rows = []
    for case_id in worst_first(page.results[-1]):
        first = by_model[0][case_id]
        for index in sorted(first.measures):
            found = [cases[case_id].measures[index] for cases in by_model]
            ends = found[0].strict["dice"], found[-1].strict["dice"]
            change = None if None in ends or len(found) < 2 else (ends[1] or 0) - (ends[0] or 0)
            rows.append(
                {
                    "case": case_id,
                    "viewer": shown.get(case_id),
                    "patient": first.patient_id,
                    "class": page.summary.class_names[index],
                    "colour": hex_colour(index),
                    "models": [_case_cells(measures, metrics) for measures in found],
                    "change": "–" if change is None else words.points(change),
                    "change_sort": "" if change is None else f"{change:.6g}",
                }
            )
    names = [result.name for result in page.results]
    return {
        "titles": [words.metric_title(m) for m in metrics],
        "models": names,
        "change": f"Change in Dice{_ends(names)}, points",
        "rows": rows,
    }


def _ends(names: Sequence[str]) -> str:
    """Which two of several models a difference is of; nothing where there is no choice."""
    return f", {names[-1]} minus {names[0]}" if len(names) > 2 else ""


def _case_metrics(models: int, unit: str) -> list[str]:
    """Fewer metrics beside each other the more models there are; cases.csv holds all of them."""
    metrics = ["dice", f"hd95_pooled_{unit}", f"assd_{unit}"]
    if unit == "mm":
        metrics.append("volume_difference_ml")
    return metrics if models <= 2 else metrics[:2] if models == 3 else metrics[:1]


def _case_cells(measures: ClassMeasures, metrics: Sequence[str]) -> dict[str, Any]:
    presence = measures.presence
    cells = [
        {
            "value": words.number(measures.strict[metric], metric),
            "sort": "" if measures.strict[metric] is None else f"{measures.strict[metric]:.6g}",
        }
        for metric in metrics
    ]
    return {"cells": cells, "tag": "" if presence is Presence.BOTH else presence.value}


def _distribution(page: PageInput) -> Markup:
    names = [result.name for result in page.results]
    groups = []
    for index, name in enumerate(page.summary.class_names[1:], start=1):
        values = {
            result.name: [case.measures[index].strict["dice"] for case in result.cases]
            for result in page.results
        }
        groups.append(Group(name, values))
    return strip_chart(groups, names, label="Dice of every case, per class and model")


def _curves(page: PageInput) -> Markup | None:
    lines = []
    for name, run in page.runs.items():
        points = [(row["step"], row["dice"]) for row in run.history if {"step", "dice"} <= set(row)]
        if points:
            lines.append(Line(name, points, float(run.best_step)))
    if not lines:
        return None
    names = [result.name for result in page.results]
    label = "Mean validation Dice over training steps"
    return line_chart(lines, label=label, x_name="training step", series=names)


def _mask_row(
    name: str, cases: int, coarse: Figure | None, sam2: Figure, gain: Any
) -> dict[str, Any]:
    change = "–"
    if gain is not None:
        change = words.points(gain.gain)
        if gain.low is not None and gain.high is not None:
            change += f" ({words.points(gain.low)} to {words.points(gain.high)}; "
            change += f"{p_text(gain.p_value)})"
    blank = {"value": "–", "span": "", "sort": ""}
    return {
        "name": name,
        "cases": cases,
        "coarse": _cell(coarse, "dice") if coarse is not None else blank,
        "sam2": _cell(sam2, "dice"),
        "gain": change,
    }


def _provenance(page: PageInput) -> list[tuple[str, str]]:
    summary = page.summary
    rows = [
        ("Dataset", f"{summary.dataset_name}, layout {page.manifest.source_layout}"),
        ("Dataset digest", summary.dataset_digest),
        ("Source digest", page.manifest.source_digest),
        ("Split rule", summary.split_rule),
        ("Measured role", " and ".join(summary.roles)),
        ("Settings digest", summary.config_digest),
        ("Seed of intervals and test", str(summary.config["seed"])),
    ]
    rows += [
        (f"Model {m.name}", f"{m.method}, step {m.step}, {m.model_digest}") for m in summary.models
    ]
    if summary.gain is not None:
        rows.append(("Interval and test", summary.gain.test))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(summary.versions.items()))
    return [*rows, ("Versions", versions)]


def _run_row(name: str, run: RunRecord) -> dict[str, str]:
    return {
        "name": name,
        "method": run.method,
        "seed": str(run.seed),
        "steps": str(run.steps),
        "kept": str(run.best_step),
        "selection": run.selection,
        "time": _duration(run.wall_time_s),
        "device": run.device,
        "config": run.config_digest[:12],
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
