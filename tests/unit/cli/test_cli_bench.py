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


def test_the_error_of_the_run_counts_before_that_of_the_packing(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRun), collecting(tmp_path, tmp_path / "table.tar"):
        raise InterruptedRun("stopped before there was a table")
    assert not (tmp_path / "table.tar").exists()
    with pytest.raises(UsageError, match="tar file"):
        with collecting(folder_with_a_table(tmp_path), tmp_path / "table.zip"):
            pass


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
