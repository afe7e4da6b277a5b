"""Means, intervals over patients, the paired test and the identities."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from sssflow.errors import InternalError
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

RESAMPLING = Resampling(resamples=2000, confidence=0.95, seed=7)


def table(*rows: tuple[str, float | None, float | None]) -> ScoreTable:
    return table_of([row[1:] for row in rows], [str(row[0]) for row in rows])


def test_the_mean_goes_over_cases_first_and_classes_second() -> None:
    scores = table(("a", 0.8, None), ("a", 0.6, None), ("b", 0.1, 0.9))
    # Class 1: mean of 0.8, 0.6, 0.1 = 0.5; class 2: 0.9 alone; over classes 0.7.
    assert scores.mean() == pytest.approx(0.7)
    found = figure(scores, RESAMPLING)
    assert (found.count, found.excluded) == (4, 2)


def test_a_class_without_any_value_is_left_out_and_none_at_all_gives_none() -> None:
    assert table(("a", 0.4, None), ("b", 0.6, None)).mean() == pytest.approx(0.5)
    empty = figure(table(("a", None, None), ("b", None, None)), RESAMPLING)
    assert (empty.value, empty.low, empty.high, empty.count, empty.excluded) == (
        None,
        None,
        None,
        0,
        4,
    )


def test_the_interval_of_two_patients_spans_both_of_them() -> None:
    # Resamples: both a (1/4), both b (1/4), one each (1/2): the ends are the patients' own means.
    assert interval(table(("a", 0.2, 0.2), ("b", 0.8, 0.8)), RESAMPLING) == pytest.approx(
        (0.2, 0.8)
    )


def test_one_patient_gives_no_interval() -> None:
    assert interval(table(("a", 0.2, 0.4), ("a", 0.8, 0.9)), RESAMPLING) == (None, None)


def test_a_class_that_one_patient_alone_shows_has_no_interval() -> None:
    scores = table(("a", 0.8, None), ("b", 0.6, 0.5), ("b", 0.7, 0.9), ("c", 0.7, None))
    alone = figure(scores.column(1), RESAMPLING)
    assert (alone.value, alone.low, alone.high) == (pytest.approx(0.7), None, None)
    assert figure(scores.column(0), RESAMPLING).low is not None


def test_equal_patients_give_an_interval_of_no_width() -> None:
    scores = table(*((name, 0.7, 0.7) for name in "abcd"))
    assert interval(scores, RESAMPLING) == pytest.approx((0.7, 0.7))


def test_the_interval_resamples_patients_not_cases() -> None:
    # Ten equal cases per patient carry no more information than one.
    few = table(("a", 0.1, 0.2), ("b", 0.5, 0.7), ("c", 0.9, 0.8))
    many = table(
        *(row for row in (("a", 0.1, 0.2), ("b", 0.5, 0.7), ("c", 0.9, 0.8)) for _ in range(10))
    )
    assert interval(many, RESAMPLING) == pytest.approx(interval(few, RESAMPLING))


def test_the_interval_is_a_function_of_the_seed() -> None:
    generator = np.random.default_rng(0)
    scores = ScoreTable(generator.random((9, 2)), tuple("abcdefghi"))
    again = Resampling(2000, 0.95, seed=8)
    assert interval(scores, RESAMPLING) == interval(scores, RESAMPLING)
    assert interval(scores, RESAMPLING) != interval(scores, again)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    names = tuple(f"p{i}" for i in range(30))
    hits = 0
    for _ in range(200):
        low, high = interval(
            ScoreTable(generator.normal(0.5, 0.1, (30, 1)), names), Resampling(400, 0.9, 1)
        )
        assert low is not None
        assert high is not None
        hits += low <= 0.5 <= high
    assert 0.82 <= hits / 200 <= 0.96


def test_the_gain_is_the_difference_of_the_means() -> None:
    base = table(("a", 0.5, 0.4), ("b", 0.3, 0.8), ("b", 0.2, 0.1))
    head = table(("a", 0.6, 0.9), ("b", 0.7, 0.7), ("b", 0.4, 0.2))
    difference = paired_difference(head, base, absent=1.0)
    head_mean, base_mean = head.mean(), base.mean()
    assert head_mean is not None
    assert base_mean is not None
    assert difference.mean() == pytest.approx(head_mean - base_mean)


def test_a_hallucination_is_not_forgiven_by_leaving_its_pair_out() -> None:
    base, head = table(("a", None, 0.5)), table(("a", 0.0, 0.5))
    difference = paired_difference(head, base, absent=1.0)
    assert difference.score_nc.tolist() == [[-1.0, 0.0]]
    assert paired_difference(base, head, absent=1.0).score_nc.tolist() == [[1.0, 0.0]]
    assert unequal_pairs(head, base) == 1
    both = paired_difference(base, base, absent=1.0)
    assert np.isnan(both.score_nc[0, 0])
    assert unequal_pairs(base, base) == 0


def test_models_measured_on_other_cases_are_not_compared() -> None:
    with pytest.raises(InternalError, match="same cases"):
        paired_difference(table(("a", 0.1, 0.1)), table(("b", 0.1, 0.1)), absent=1.0)


def test_the_exact_test_counts_every_sign_pattern() -> None:
    # Four patients, all better: only +++- and ---- style patterns of all equal signs reach it.
    found, name = sign_flip_test(
        table(("a", 0.1, 0.1), ("b", 0.2, 0.2), ("c", 0.3, 0.3), ("d", 0.4, 0.4)), flips=100, seed=0
    )
    assert found == pytest.approx(2 / 16)
    assert name == "exact paired sign-flip test over 4 patients"


def test_the_exact_test_agrees_with_a_literal_enumeration() -> None:
    generator = np.random.default_rng(5)
    names = ["a", "a", "b", "c", "c", "d", "e"]
    values = generator.normal(0.05, 0.2, (7, 3))
    values[2, 1] = np.nan
    difference = ScoreTable(values, tuple(names))
    observed = difference.mean()
    assert observed is not None
    reached = 0
    for signs in itertools.product((1, -1), repeat=5):
        sign = dict(zip("abcde", signs, strict=True))
        flipped = ScoreTable(values * np.array([[sign[n]] for n in names]), tuple(names)).mean()
        assert flipped is not None
        reached += abs(flipped) >= abs(observed) - 1e-12
    assert sign_flip_test(difference, flips=100, seed=0)[0] == pytest.approx(reached / 32)


def test_no_difference_at_all_gives_p_of_one() -> None:
    scores = table(*((name, 0.0, 0.0) for name in "abcde"))
    assert sign_flip_test(scores, flips=100, seed=0)[0] == 1.0


def test_many_patients_are_tested_by_seeded_flips_close_to_the_exact_value() -> None:
    generator = np.random.default_rng(9)
    values = generator.normal(0.06, 0.12, 13)
    names = tuple(f"p{i:02d}" for i in range(13))
    signs = np.array(list(itertools.product((1, -1), repeat=13)))
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    scores = ScoreTable(values[:, None], names)
    found, name = sign_flip_test(scores, flips=20_000, seed=1)
    assert found == pytest.approx(exact, abs=0.01)
    assert found == sign_flip_test(scores, flips=20_000, seed=1)[0]
    assert "20000 flips, seed 1" in name


def test_one_patient_is_not_tested() -> None:
    assert sign_flip_test(table(("a", 0.1, 0.2)), flips=100, seed=0)[0] is None


def test_broken_identities_are_a_bug_and_said_so() -> None:
    dice = [0.0, 0.5, 2 / 3, 1.0]
    check_identities(dice, [0.0, 1 / 3, 0.5, 1.0])
    check_identities([], [])
    with pytest.raises(InternalError, match="Jaccard"):
        check_identities(dice, [0.0, 0.3, 0.5, 1.0])
    with pytest.raises(InternalError, match="number"):
        check_identities(dice, [0.0])


def test_a_row_without_a_patient_is_refused() -> None:
    with pytest.raises(InternalError, match="one patient per row"):
        ScoreTable(np.zeros((2, 1)), ("a",))


def test_many_resamples_are_drawn_in_blocks_and_give_the_same_interval(monkeypatch) -> None:
    scores = np.random.default_rng(1).random((40, 2))
    table = ScoreTable(scores, tuple(f"p{number:02d}" for number in range(40)))
    asked = Resampling(resamples=1000, confidence=0.95, seed=3)
    whole = interval(table, asked)
    monkeypatch.setattr("sssflow.evaluation.aggregate._RESAMPLES_AT_ONCE", 64)
    assert interval(table, asked) == pytest.approx(whole, abs=1e-12)


def test_the_most_resamples_of_the_settings_take_little_memory() -> None:
    table = ScoreTable(np.ones((50, 1)), tuple(f"p{number:02d}" for number in range(50)))
    tracemalloc.start()
    try:
        interval(table, Resampling(resamples=300_000, confidence=0.95, seed=3))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 120e6  # drawn at once, their weights alone are 240e6
