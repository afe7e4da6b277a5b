"""Means over seeds and the pool of processes, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from sssflow.bench.cells import p_cell
from sssflow.bench.scores import Scored, group_rows, over_seeds
from sssflow.contracts.base import ObjectRef
from sssflow.contracts.bench import RunKey, RunResult
from sssflow.errors import InternalError
from sssflow.evaluation.aggregate import Resampling, figure, table_of

REF = ObjectRef(uri="x", size_bytes=0, sha256="0" * 64)
METRICS = ("strict_dice", "strict_iou", "ssl4mis_dice")


def scored(
    method: str,
    seed: int,
    rows: list[list[float | None]],
    dataset: str = "0",
    variant: str = "default",
) -> Scored:
    result = RunResult(
        key=RunKey(method=method, variant=variant, labelled=3, seed=seed),
        order_digest="0" * 64,
        config_digest="0" * 64,
        dataset_digest=dataset * 64,
        model=REF,
        model_digest="0" * 64,
        weights_bytes=0,
        selection="last step (nothing was selected)",
        best_step=1,
        steps_in_all=1,
        roles=("test",),
        cases=REF,
        strict={},
        ssl4mis={},
        wall_time_s={},
        device="cpu",
    )
    table = table_of(rows, ["p1", "p2"])
    return Scored(result, dict.fromkeys(METRICS, table))


def test_a_hallucination_of_one_seed_counts_once_not_as_often_as_there_are_seeds() -> None:
    """Five patients with the class (Dice 0.5), five without; each seed invents it in another."""
    patients = [f"p{number}" for number in range(10)]

    def run(method: str, seed: int, invented: int | None) -> Scored:
        rows = [[0.5] if n < 5 else [0.0 if n == invented else None] for n in range(10)]
        table = table_of(rows, patients)
        return Scored(scored(method, seed, [[0.0], [0.0]]).result, dict.fromkeys(METRICS, table))

    runs = [run("mean_teacher", seed, 4 + seed) for seed in (1, 2, 3)]
    clean = [run("supervised", seed, None) for seed in (1, 2, 3)]
    row, _ = group_rows(runs + clean, Resampling(200, 0.95, 1), 100)
    assert row.dice_over_seeds == (pytest.approx(2.5 / 6),) * 3
    assert row.figures["strict_dice"].value == pytest.approx(2.5 / 6), "as each of its runs"
    assert row.comparison is not None
    # A score that one side leaves out rightly counts as 1: per seed -1 over six defined pairs.
    assert row.comparison.gain.value == pytest.approx(-1 / 6)


def test_where_every_score_is_defined_a_row_is_the_mean_over_seeds_of_each_case() -> None:
    one, two = scored("a", 1, [[0.5], [0.75]]), scored("a", 2, [[0.7], [0.25]])
    resampling = Resampling(200, 0.95, 1)
    found = figure(over_seeds([one, two], "strict_dice"), resampling)
    wanted = figure(table_of([[0.6], [0.5]], ["p1", "p2"]), resampling)
    assert (found.value, found.low, found.high) == tuple(
        pytest.approx(value) for value in (wanted.value, wanted.low, wanted.high)
    )
    other = Scored(two.result, dict.fromkeys(METRICS, table_of([[0.5], [0.5]], ["p1", "p3"])))
    with pytest.raises(InternalError, match="different cases"):
        over_seeds([one, other], "strict_dice")


def test_seeds_with_patients_of_their_own_stand_side_by_side() -> None:
    one, two = scored("a", 1, [[0.5], [0.6]], "1"), scored("a", 2, [[0.7], [0.8]], "2")
    joined = over_seeds([one, two], "strict_dice")
    assert joined.patient_n == ("s1.p1", "s1.p2", "s2.p1", "s2.p2")
    assert np.ravel(joined.score_nc).tolist() == [0.5, 0.6, 0.7, 0.8]


def test_a_gain_is_paired_on_the_seeds_that_both_have() -> None:
    runs = [
        scored("supervised", 1, [[0.4], [0.6]]),
        scored("supervised", 2, [[0.0], [0.0]]),
        scored("mean_teacher", 1, [[0.5], [0.7]]),
    ]
    rows = group_rows(runs, Resampling(200, 0.95, 1), 100)
    assert [row.method for row in rows] == ["supervised", "mean_teacher"]
    assert rows[0].comparison is None
    versus = rows[1].comparison
    assert versus is not None
    assert versus.gain.value == pytest.approx(0.1)
    assert versus.p_value == 0.5  # two patients, four sign patterns, two as extreme
    assert versus.gain_by_seed == {1: pytest.approx(0.1)}
    assert rows[0].dice_std == pytest.approx(0.5 / math.sqrt(2))


def test_a_variant_is_compared_with_the_same_method_without_it() -> None:
    runs = [
        scored("supervised", 1, [[0.4], [0.6]]),
        scored("unimatch_v2", 1, [[0.5], [0.7]]),
        scored("unimatch_v2", 1, [[0.5], [0.9]], variant="flips"),
        scored("supervised", 1, [[0.3], [0.6]], variant="flips"),
    ]
    rows = group_rows(runs, Resampling(200, 0.95, 1), 100)
    gains = [row.over_default.gain.value if row.over_default else None for row in rows]
    assert gains == [None, None, pytest.approx(0.1), pytest.approx(-0.05)]
    over_supervised = rows[2].comparison
    assert over_supervised is not None
    assert over_supervised.gain.value == pytest.approx(0.25), "with the supervised run so tested"
    assert rows[2].over_default is not None
    assert rows[2].over_default.baseline == "unimatch_v2, default"


def test_a_missing_score_file_is_named(tmp_path: Path) -> None:
    from sssflow.bench.scores import read_scores
    from sssflow.errors import DataError

    with pytest.raises(DataError, match="missing"):
        read_scores(scored("a", 1, [[0.5], [0.5]]).result, tmp_path)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.5, "0.500"), (0.001, "0.001"), (0.0004, "< 0.001")]
)
def test_a_chance_is_never_told_as_zero(value: float | None, text: str) -> None:
    assert p_cell(value) == text
