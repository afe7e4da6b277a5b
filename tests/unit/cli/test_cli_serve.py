"""What `sssflow serve` says before a server runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sssflow.cli.main import run
from sssflow.serving import environment


def test_the_repository_is_looked_at_before_a_server_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[Path] = []
    monkeypatch.setattr(environment, "ensure", asked.append)
    assert run(["serve", "up", "missing"]) == 65
    assert "where: missing/repository.json" in capsys.readouterr().err
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_the_status_without_a_server_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["serve", "status"]) == 69
    assert "next: Start one: sssflow serve up REPOSITORY\n" in capsys.readouterr().err
    assert run(["serve", "status", "--state", "other"]) == 69
    assert "serve up REPOSITORY --state other\n" in capsys.readouterr().err


def test_there_is_nothing_to_stop_where_the_state_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["serve", "down", "--state", str(tmp_path / "file")]) == 0
    assert capsys.readouterr().out == "no server was running\n"
