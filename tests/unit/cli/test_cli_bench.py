"""`sssflow bench --collect`: what is packed when, and whose error counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sssflow.cli.bench import collecting
from sssflow.cli.main import run
from sssflow.errors import InterruptedRun, UsageError


def folder_with_a_table(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    (out / "table.md").write_text("# Table\n", encoding="utf-8")
    return out


def test_a_stopped_benchmark_is_packed_too_and_stays_a_stop(tmp_path: Path) -> None:
    archive = tmp_path / "table.tar"
    with pytest.raises(InterruptedRun), collecting(folder_with_a_table(tmp_path), archive):
        raise InterruptedRun("stopped")
    assert archive.stat().st_size > 0


def test_the_error_of_the_run_counts_before_that_of_the_packing_which_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InterruptedRun), collecting(tmp_path, tmp_path / "table.tar"):
        raise InterruptedRun("stopped before there was a table")
    assert not (tmp_path / "table.tar").exists()
    (told,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "table.tar was not written" in told.getMessage()
    assert "no table to collect" in told.getMessage()
    with pytest.raises(UsageError, match="tar file"):
        with collecting(folder_with_a_table(tmp_path), tmp_path / "table.zip"):
            pass


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_an_archive_of_another_ending_is_refused_before_anything_starts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["bench", str(out), "--collect", str(tmp_path / "table.tgz"), *words]) == 64
    assert "The archive is a tar file" in capsys.readouterr().err
    assert not out.exists()


def test_nothing_is_packed_without_being_asked(tmp_path: Path) -> None:
    with collecting(tmp_path, None):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--labelled", "--seeds"])
@pytest.mark.parametrize("text", ["[3,7]", "3;7", "yes", "{"])
def test_what_is_no_list_of_numbers_is_a_usage_error(
    option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "OUT", option, text, "--dry-run"]) == 64
    assert f"{option} needs numbers" in capsys.readouterr().err


def test_numbers_between_commas_name_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--labelled", "2, 4", "--seeds", "5", "--methods", "mean_teacher", "--dry-run"]
    assert run(["bench", "OUT", *words]) == 0
    told = capsys.readouterr().out
    assert "mean_teacher, default, 2 labelled, seeds 5" in told
    assert "mean_teacher, default, 4 labelled, seeds 5" in told


def test_the_plan_says_how_to_go_on_and_claims_no_earlier_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["bench", "OUT", "--methods", "supervised", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "if it is stopped, the same command goes on from there" in told
    assert "interrupted" not in told


@pytest.mark.parametrize(
    ("words", "next_step"),
    [
        (["--protocol", "acdc-lite"], "Give the one that has your scans"),
        (["--source", "."], "Leave them out"),
    ],
)
def test_data_in_the_wrong_place_are_told_with_the_next_step(
    words: list[str], next_step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "OUT", "--methods", "supervised", *words, "--dry-run"]) == 64
    assert f"next: {next_step}" in capsys.readouterr().err


def test_a_negative_seed_is_refused_by_the_name_that_was_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["bench", "OUT", "--seeds", "-1", "--methods", "supervised", "--dry-run"]) == 64
    told = capsys.readouterr().err
    assert "where: sssflow bench" in told
    assert "seeds.0: Input should be greater than or equal to 0 (found -1)" in told
