"""The tables of a benchmark: Markdown to read, CSV to compute with."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from sssflow.bench.cells import DASH, amount, estimate, number, p_cell, table_lines
from sssflow.bench.protocol import Protocol
from sssflow.bench.published import PublishedRow
from sssflow.bench.scores import Comparison, Estimate, GroupRow
from sssflow.bench.table_published import published_lines
from sssflow.contracts.bench import RunFailure, RunKey, RunResult
from sssflow.evaluation.metrics import CONVENTIONS

_SAME = " (same settings as default)"

_SHOWN = {
    "strict_dice": ("Dice", 100.0),
    "strict_iou": ("Jaccard", 100.0),
    "ssl4mis_dice": ("Dice", 100.0),
    "ssl4mis_jaccard": ("Jaccard", 100.0),
    "ssl4mis_hd95_voxel": ("HD95 (voxels)", 1.0),
    "ssl4mis_asd_voxel": ("ASD (voxels)", 1.0),
}


def markdown(
    protocol: Protocol,
    rows: Sequence[GroupRow],
    failures: Mapping[str, RunFailure],
    missing: Sequence[RunKey],
    published: Sequence[PublishedRow],
    words: Sequence[str],
    changed: Sequence[str] = (),
    data: Sequence[str] = (),
) -> str:
    """The page: results, then published against ours, then every run, then what failed.

    `changed` are the settings, key=value, that stood over the protocol's in every run; `data` says
    which datasets were read.
    """
    parts = [
        f"# {protocol.title}",
        "",
        protocol.summary,
        "",
        *([f"Dataset: {'; '.join(data)}.", ""] if data else []),
        *_changed(changed),
        *_results(protocol, rows),
        *_failed(failures, missing),
        *published_lines(protocol, rows, published),
        *_runs(rows),
        *_words(protocol, rows, words),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _changed(changed: Sequence[str]) -> list[str]:
    if not changed:
        return []
    keys = ", ".join(f"`{text}`" for text in changed)
    return [f"**Not the protocol as it is: every run of this page was made with {keys}.**", ""]


def _results(protocol: Protocol, rows: Sequence[GroupRow]) -> list[str]:
    head = ["labelled", "method", "variant", "seeds", "Dice", "sd over seeds"]
    head += ["gain over supervised", "p", "gain over its default", "p", "Jaccard", "HD95"]
    head += ["SSL4MIS: Dice / Jaccard / HD95 / ASD", "validation Dice best / last", "steps"]
    head += ["all stages, min"]
    cells = []
    for row in rows:
        cells.append(
            [
                amount(row.labelled, protocol),
                row.method,
                f"{row.variant}{_SAME if row.same_as_default else ''}",
                str(len(row.seeds)),
                estimate(row.figures["strict_dice"], 100),
                number(row.dice_std, 100),
                *_versus(row.comparison),
                *_versus(row.over_default),
                number(row.figures["strict_iou"].value, 100),
                _hd95(row),
                _quadruple(row.figures),
                _validation(row),
                _range([r.steps_in_all for r in row.results]),
                number(_mean([sum(r.wall_time_s.values()) for r in row.results]), 1 / 60, 1),
            ]
        )
    return ["## Results", "", *table_lines(head, cells), ""]


def _versus(found: Comparison | None) -> tuple[str, str]:
    if found is None:
        return DASH, DASH
    above = sum(gain > 0 for gain in found.gain_by_seed.values())
    seeds = f"; {above} of {len(found.gain_by_seed)} seeds above 0"
    return estimate(found.gain, 100, signed=True) + seeds, p_cell(found.p_value)


def _failed(failures: Mapping[str, RunFailure], missing: Sequence[RunKey]) -> list[str]:
    if not failures and not missing:
        return []
    cells = [[name, f.kind, f.first_line] for name, f in failures.items()]
    cells += [[key.name, "not there yet", "not ended when this was written"] for key in missing]
    return ["## Runs without a result", "", *table_lines(["run", "kind", "reason"], cells), ""]


def _runs(rows: Sequence[GroupRow]) -> list[str]:
    head = ["run", "Dice", "kept step", "selection", "dataset", "settings", "model", "device"]
    head += ["GPU, GiB", "coarse to SAM-2, Dice"]
    cells = [
        [
            result.key.name,
            number(result.strict["dice"].value, 100),
            _kept_step(result),
            result.selection,
            result.dataset_digest[:12],
            result.config_digest[:12],
            result.model_digest[:12],
            result.device,
            number(result.peak_gpu_gib, 1),
            "; ".join(
                f"{number(q.coarse.value, 100)} to {number(q.sam2.value, 100)}"
                for q in result.sam2
                if q.coarse is not None
            )
            or DASH,
        ]
        for row in rows
        for result in row.results
    ]
    return ["## Every run", "", *table_lines(head, cells), ""]


def _kept_step(result: RunResult) -> str:
    """The step that was kept, among those of its own training: others ran before or beside it."""
    if result.steps_of_training is None:
        return f"{result.best_step} of {result.steps_in_all}"
    after = f" after {result.steps_of_warmup}" if result.steps_of_warmup else ""
    return f"{result.best_step} of {result.steps_of_training}{after}"


def _words(protocol: Protocol, rows: Sequence[GroupRow], words: Sequence[str]) -> list[str]:
    lines = [*words, _seed_words(rows), _TRAININGS, *protocol.caveats]
    roles = sorted({role for row in rows for r in row.results for role in r.roles})
    if "validation" in roles and any(
        "validation cases" in r.selection for row in rows for r in row.results
    ):
        lines.append(
            "Measured on the validation patients, which also chose each model's step: every row "
            "is flattered, all in the same way."
        )
    lines.append(f"Strict: {CONVENTIONS['strict']}")
    lines.append(f"SSL4MIS: {CONVENTIONS['ssl4mis']}")
    lines += [f"Protocol after: {reference}" for reference in protocol.references]
    return ["## How it was measured", "", *(f"* {line}" for line in lines)]


_TRAININGS = (
    "Intervals and p are over patients and take the trainings as they fell out: what another "
    "training would give is not in them. For that look at the sd over seeds and at the number of "
    "seeds whose own gain is above 0; the gain of every seed is in table.csv."
)


def _seed_words(rows: Sequence[GroupRow]) -> str:
    if any(len({r.dataset_digest for r in row.results}) > 1 for row in rows):
        return "Every seed has patients of its own; all of them are drawn from."
    return "The seeds' scores of a patient are drawn together."


CSV_COLUMNS = (
    "protocol", "labelled", "method", "variant", "seed", "metric", "value", "low", "high",
    "gain", "gain_low", "gain_high", "p_value", "over_default", "over_default_low",
    "over_default_high", "over_default_p", "steps_in_all", "kept_step", "wall_time_s",
    "selection", "roles", "device", "dataset_digest", "config_digest", "model_digest", "status",
)  # fmt: skip


def table_csv(
    protocol: Protocol, rows: Sequence[GroupRow], failures: Mapping[str, RunFailure]
) -> str:
    """One line per row and metric (seed empty), one per run (strict Dice), one per failure.

    The gains in a run's line are those of its seed alone.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        common = {
            "protocol": protocol.name,
            "labelled": f"{row.labelled:g}",
            "method": row.method,
            "variant": row.variant,
        }
        for metric, found in row.figures.items():
            writer.writerow(common | _group_cells(row, metric, found))
        for result in row.results:
            dice = result.strict["dice"]
            cells = {
                "seed": result.key.seed,
                "metric": "strict_dice",
                **_interval_cells(Estimate(dice.value, dice.low, dice.high)),
                "steps_in_all": result.steps_in_all,
                "kept_step": result.best_step,
                "wall_time_s": f"{sum(result.wall_time_s.values()):.1f}",
                "selection": result.selection,
                "roles": " ".join(result.roles),
                "device": result.device,
                "dataset_digest": result.dataset_digest,
                "config_digest": result.config_digest,
                "model_digest": result.model_digest,
                "status": "done",
            }
            for name, _, versus in _comparisons(row):
                if versus is not None:
                    cells[name] = _cell(versus.gain_by_seed.get(result.key.seed))
            writer.writerow(common | cells)
    for failure in failures.values():
        key = failure.key
        writer.writerow(
            {
                "protocol": protocol.name,
                "labelled": f"{key.labelled:g}",
                "method": key.method,
                "variant": key.variant,
                "seed": key.seed,
                "status": f"{failure.kind}: {failure.first_line}",
            }
        )
    return text.getvalue()


def _group_cells(row: GroupRow, metric: str, found: Estimate) -> dict[str, object]:
    status = f"mean of {len(row.seeds)} seeds{_SAME if row.same_as_default else ''}"
    cells: dict[str, object] = {"metric": metric, "status": status}
    cells |= _interval_cells(found)
    if metric != "strict_dice":
        return cells
    for name, p_name, versus in _comparisons(row):
        if versus is not None:
            cells |= _interval_cells(versus.gain, name) | {p_name: _cell(versus.p_value)}
    return cells


def _comparisons(row: GroupRow) -> Iterator[tuple[str, str, Comparison | None]]:
    """Column of the gain, column of its p, comparison."""
    yield "gain", "p_value", row.comparison
    yield "over_default", "over_default_p", row.over_default


def _interval_cells(found: Estimate, name: str = "") -> dict[str, object]:
    names = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    values = (found.value, found.low, found.high)
    return {name: _cell(value) for name, value in zip(names, values, strict=True)}


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _hd95(row: GroupRow) -> str:
    for name, found in row.figures.items():
        if name.startswith("strict_hd95_pooled_"):
            unit = "voxels" if name.endswith("voxel") else "mm"
            return f"{number(found.value, 1)} {unit}"
    return DASH


def _quadruple(figures: Mapping[str, Estimate]) -> str:
    names = [name for name in _SHOWN if name.startswith("ssl4mis")]
    return " / ".join(number(figures[n].value, _SHOWN[n][1]) for n in names)


def _validation(row: GroupRow) -> str:
    best = _mean([r.validation_dice_best for r in row.results])
    last = _mean([r.validation_dice_last for r in row.results])
    return f"{number(best, 100)} / {number(last, 100)}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
