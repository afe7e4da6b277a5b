"""From the runs' per-case scores to the figures of a row: mean over seeds, interval over patients.

Axis letters: n cases, c foreground classes.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sssflow.bench.config import SUPERVISED
from sssflow.bench.plan import baseline_variant
from sssflow.bench.variants import DEFAULT
from sssflow.contracts.bench import RunResult
from sssflow.errors import DataError, InternalError
from sssflow.evaluation.aggregate import (
    Resampling,
    ScoreTable,
    figure,
    interval,
    paired_difference,
    sign_flip_test,
    table_of,
)
from sssflow.storage.digest import verified_path

METRICS = (
    "strict_dice", "strict_iou", "ssl4mis_dice", "ssl4mis_jaccard",
    "ssl4mis_hd95_voxel", "ssl4mis_asd_voxel",
)  # fmt: skip
"""Columns of cases.csv that are tabulated, beside the strict distances."""

STRICT_DISTANCES = ("strict_hd95_pooled_", "strict_assd_")
"""How the columns of the strict distances begin; they end in their unit."""

Group = tuple[str, str, int | float]
"""Method, variant, label count."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with an interval over patients, in the unit of its metric."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A row against another one, on the seeds and patients that both have.

    `gain_by_seed` holds the gain of every single seed.
    """

    baseline: str
    gain: Estimate
    p_value: float | None
    test: str
    gain_by_seed: Mapping[int, float]


@dataclass(frozen=True)
class GroupRow:
    """One row of the table: all seeds of one method, variant and label count.

    `comparison` is with the supervised runs of the same net and augmentation, `over_default` with
    the same method's runs without the variant. `same_as_default`: the variant changes nothing that
    these runs read.
    """

    method: str
    variant: str
    labelled: int | float
    results: tuple[RunResult, ...]
    figures: Mapping[str, Estimate]
    dice_over_seeds: tuple[float, ...]
    comparison: Comparison | None
    over_default: Comparison | None
    same_as_default: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds in order."""
        return tuple(result.key.seed for result in self.results)

    @property
    def dice_std(self) -> float | None:
        """Standard deviation of the Dice over seeds; None with one seed."""
        if len(self.dice_over_seeds) < 2:
            return None
        return statistics.stdev(self.dice_over_seeds)


@dataclass(frozen=True)
class Scored:
    """A run with its scores, one table per metric."""

    result: RunResult
    tables: Mapping[str, ScoreTable]


def read_scores(result: RunResult, folder: Path) -> Scored:
    """Read the per-case scores of a run's headline model, the last in the file.

    Raises:
        DataError: The file is missing, changed, or holds no scores.
    """
    path = verified_path(result.cases, base=folder)
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
    if not rows:
        raise DataError("A run left no scores.", where=path, action="Remove the run's folder.")
    rows = [row for row in rows if row["model"] == rows[-1]["model"]]
    names = [*METRICS, *(n for n in rows[0] if n.startswith(STRICT_DISTANCES))]
    cases = list(dict.fromkeys((row["case_id"], row["patient_id"]) for row in rows))
    tables = {}
    for name in names:
        by_case: dict[str, list[float | None]] = {case_id: [] for case_id, _ in cases}
        for row in rows:
            by_case[row["case_id"]].append(float(row[name]) if row[name] else None)
        tables[name] = table_of(list(by_case.values()), [patient for _, patient in cases])
    return Scored(result, tables)


def group_rows(runs: Sequence[Scored], resampling: Resampling, flips: int) -> list[GroupRow]:
    """One row per method, variant and label count, in the order in which they first appear."""
    groups: dict[Group, list[Scored]] = {}
    for run in runs:
        key = run.result.key
        groups.setdefault((key.method, key.variant, key.labelled), []).append(run)
    return [_row(group, groups, resampling, flips) for group in groups]


def over_seeds(runs: Sequence[Scored], metric: str) -> ScoreTable:
    """The scores of all seeds side by side, as one table.

    On one dataset the rows of a patient keep its name, so that they are drawn and change sign
    together; on datasets of their own (phantoms) patients of one number are not one patient, and
    each name is led by its seed. A score that only some seeds define counts as often as it is
    defined: the mean of a table is that of its runs, whatever their number.

    Raises:
        InternalError: Seeds of one dataset were measured on different cases.
    """
    tables = [run.tables[metric] for run in runs]
    apart = len({run.result.dataset_digest for run in runs}) > 1
    if not apart and len({(t.score_nc.shape, t.patient_n) for t in tables}) != 1:
        raise InternalError("The seeds of one row were measured on different cases.")
    names = tuple(
        f"s{run.result.key.seed}.{patient}" if apart else patient
        for run, table in zip(runs, tables, strict=True)
        for patient in table.patient_n
    )
    return ScoreTable(np.concatenate([t.score_nc for t in tables]), names)


def _row(
    group: Group, groups: Mapping[Group, list[Scored]], resampling: Resampling, flips: int
) -> GroupRow:
    method, variant, labelled = group
    runs = groups[group]
    figures = {}
    for name in runs[0].tables:
        if all(name in run.tables for run in runs):
            found = figure(over_seeds(runs, name), resampling)
            figures[name] = Estimate(found.value, found.low, found.high)
    per_seed = [run.tables["strict_dice"].mean() for run in runs]
    return GroupRow(
        method=method,
        variant=variant,
        labelled=labelled,
        results=tuple(run.result for run in runs),
        figures=figures,
        dice_over_seeds=tuple(value for value in per_seed if value is not None),
        comparison=_compare(
            group, (SUPERVISED, baseline_variant(variant), labelled), groups, resampling, flips
        ),
        over_default=_compare(group, (method, DEFAULT, labelled), groups, resampling, flips),
    )


def _compare(
    group: Group,
    other: Group,
    groups: Mapping[Group, list[Scored]],
    resampling: Resampling,
    flips: int,
) -> Comparison | None:
    """On the seeds that both have; None without any, and for a row with itself."""
    if group == other or other not in groups:
        return None
    mine = {run.result.key.seed: run for run in groups[group]}
    theirs = {run.result.key.seed: run for run in groups[other]}
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:
        return None
    tables = [over_seeds([side[s] for s in seeds], "strict_dice") for side in (mine, theirs)]
    difference = paired_difference(tables[0], tables[1], absent=1.0)
    p_value, test = sign_flip_test(difference, flips=flips, seed=resampling.seed)
    gain = Estimate(difference.mean(), *interval(difference, resampling))
    single = {seed: _gain(mine[seed], theirs[seed]) for seed in seeds}
    by_seed = {seed: value for seed, value in single.items() if value is not None}
    return Comparison(f"{other[0]}, {other[1]}", gain, p_value, f"{test}", by_seed)


def _gain(run: Scored, other: Scored) -> float | None:
    tables = (run.tables["strict_dice"], other.tables["strict_dice"])
    return paired_difference(*tables, absent=1.0).mean()
