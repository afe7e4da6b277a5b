"""What was measured, per model and case, and the figures made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sssflow.contracts.base import Sha256
from sssflow.contracts.dataset import Role
from sssflow.contracts.evaluation import Figure, ModelFigures, PairedGain
from sssflow.evaluation.aggregate import (
    Resampling,
    ScoreTable,
    check_identities,
    figure,
    interval,
    paired_difference,
    sign_flip_test,
    table_of,
    unequal_pairs,
)
from sssflow.evaluation.metrics import SSL4MIS_NAMES, ClassMeasures

Convention = Literal["strict", "ssl4mis"]


@dataclass(frozen=True)
class CaseResult:
    """Measures of one case, keyed by class index from 1."""

    case_id: str
    patient_id: str
    role: Role
    measures: Mapping[int, ClassMeasures]

    def mean_dice(self) -> float | None:
        """Strict Dice, mean over the classes that have one; None without any."""
        values = [m.strict["dice"] for m in self.measures.values()]
        defined = [value for value in values if value is not None]
        return sum(defined) / len(defined) if defined else None


@dataclass(frozen=True)
class ModelResult:
    """All cases of one model, sorted by case id; every case holds the same classes."""

    name: str
    digest: Sha256
    method: str
    step: int
    cases: tuple[CaseResult, ...]

    def table(self, convention: Convention, metric: str) -> ScoreTable:
        """One metric as a table of cases and classes."""
        rows = [
            [getattr(measures, convention)[metric] for _, measures in sorted(case.measures.items())]
            for case in self.cases
        ]
        return table_of(rows, [case.patient_id for case in self.cases])

    @property
    def strict_metrics(self) -> tuple[str, ...]:
        """Names of the strict metrics in column order."""
        return tuple(next(iter(self.cases[0].measures.values())).strict)


@dataclass(frozen=True)
class TestSettings:
    """How intervals and paired tests are made."""

    __test__ = False  # pytest: this is not a test class

    resampling: Resampling
    flips: int


def check_result(result: ModelResult) -> None:
    """Hold the overlap scores of a model to their identities, per class.

    Raises:
        InternalError: An identity is broken.
    """
    for index in result.cases[0].measures:
        measures = [case.measures[index] for case in result.cases]
        for convention, jaccard in (("strict", "iou"), ("ssl4mis", "jaccard")):
            scores = [getattr(m, convention) for m in measures]
            check_identities(
                [s["dice"] for s in scores if s["dice"] is not None],
                [s[jaccard] for s in scores if s[jaccard] is not None],
            )


def model_figures(
    result: ModelResult, class_names: Sequence[str], settings: TestSettings
) -> ModelFigures:
    """Means of every metric with intervals; `class_names` starts with the background."""
    tables = {metric: result.table("strict", metric) for metric in result.strict_metrics}
    per_class: dict[str, dict[str, Figure]] = {
        name: {
            metric: figure(table.column(column), settings.resampling)
            for metric, table in tables.items()
        }
        for column, name in enumerate(class_names[1:])
    }
    return ModelFigures(
        name=result.name,
        model_digest=result.digest,
        method=result.method,
        step=result.step,
        strict={metric: figure(table, settings.resampling) for metric, table in tables.items()},
        ssl4mis={
            metric: figure(result.table("ssl4mis", metric), settings.resampling)
            for metric in SSL4MIS_NAMES
        },
        per_class=per_class,
    )


def paired_gain(
    headline: ModelResult, baseline: ModelResult, settings: TestSettings, *, metric: str = "dice"
) -> PairedGain | None:
    """Strict gain of one model over another on the same cases; None if nothing can be paired."""
    best = 0.0 if "_mm" in metric or "_voxel" in metric or "_ml" in metric else 1.0
    difference = paired_difference(
        headline.table("strict", metric), baseline.table("strict", metric), absent=best
    )
    gain = difference.mean()
    if gain is None:
        return None
    low, high = interval(difference, settings.resampling)
    p_value, test = sign_flip_test(difference, flips=settings.flips, seed=settings.resampling.seed)
    return PairedGain(
        metric=metric,
        baseline=baseline.name,
        headline=headline.name,
        gain=gain,
        low=low,
        high=high,
        p_value=p_value,
        test=f"{test}; {settings.resampling.describe()}",
        patients=len(difference.patients),
    )


def pairs_with_one_absent(headline: ModelResult, baseline: ModelResult) -> int:
    """Pairs where one model is correctly empty and the other hallucinates."""
    return unequal_pairs(headline.table("strict", "dice"), baseline.table("strict", "dice"))


def worst_first(result: ModelResult) -> tuple[str, ...]:
    """Case ids by rising mean Dice, then id; cases without any score are last."""
    return tuple(
        case.case_id
        for case in sorted(
            result.cases,
            key=lambda c: (c.mean_dice() is None, c.mean_dice() or 0.0, c.case_id),
        )
    )
