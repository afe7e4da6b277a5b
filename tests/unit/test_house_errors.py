"""Errors say what, where, expected, found and next, and carry the exit code of their kind."""

from __future__ import annotations

import pytest

from sssflow.errors import (
    DataError,
    DataProblems,
    InternalError,
    InterruptedRun,
    SssflowError,
    UnavailableError,
    UsageError,
)


def test_a_message_lists_each_fact_on_its_own_line_and_leaves_out_empty_ones() -> None:
    error = DataError(
        "The scan is truncated.", where="a.nii", expected=100, found=90, action="Copy it again."
    )
    assert str(error) == (
        "The scan is truncated.\n"
        "  where: a.nii\n  expected: 100\n  found: 90\n  next: Copy it again."
    )
    assert str(DataError("Only this.")) == "Only this."


def test_each_kind_has_the_exit_code_that_pipelines_read() -> None:
    codes = {
        SssflowError: 70,
        UsageError: 64,
        DataError: 65,
        DataProblems: 65,
        UnavailableError: 69,
        InternalError: 70,
        InterruptedRun: 75,
    }
    assert {kind: kind.exit_code for kind in codes} == codes


def test_several_problems_are_all_told_with_their_own_facts() -> None:
    bundle = DataProblems(
        "Two scans are bad.",
        [DataError("One.", where="a"), DataError("Two.", found="NaN")],
        action="Correct them.",
    )
    assert str(bundle).splitlines() == [
        "Two scans are bad.",
        "  found: 2 problem(s)",
        "  next: Correct them.",
        "[1] One.",
        "  where: a",
        "[2] Two.",
        "  found: NaN",
    ]


def test_a_bundle_without_problems_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one"):
        DataProblems("Nothing.", [])
