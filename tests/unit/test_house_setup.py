"""Setting up: once per content of the locks, with a Python that runs, with a remedy if it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "cat requirements/*.txt pyproject.toml tools/setup.sh | sha256sum | cut -c1-16"


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with what the script needs and no Python at all."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "env", "dirname", "cat", "sha256sum", "cut", "sh"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def set_up(venv: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "tools" / "setup.sh"), str(venv)],
        env={"PATH": str(path), "HOME": str(venv.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stamp_of_the_same_locks_means_that_nothing_is_done(tmp_path: Path, tools: Path) -> None:
    digest = subprocess.run(
        ["bash", "-c", DIGEST],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    venv = tmp_path / "venv"
    script(venv / "bin" / "python", "exit 9")
    (venv / f".sssflow-{digest}").touch()
    done = set_up(venv, tools)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_stamp_of_other_locks_means_that_it_is_installed_again(
    tmp_path: Path, tools: Path
) -> None:
    venv = tmp_path / "venv"
    script(venv / "bin" / "python", "exit 9")
    (venv / ".sssflow-0123456789abcdef").touch()
    done = set_up(venv, tools)
    assert done.returncode == 69
    assert "setup: installing" in done.stdout
    assert "next: check the network" in done.stderr


def test_without_a_fitting_python_the_remedy_is_named(tmp_path: Path, tools: Path) -> None:
    script(tools / "python3", "exit 1")
    done = set_up(tmp_path / "venv", tools)
    assert done.returncode == 69
    assert "no Python 3.11 to 3.13" in done.stderr
    assert "apt-get install" in done.stderr


def test_a_python_that_is_on_the_path_but_does_not_run_is_passed_over(
    tmp_path: Path, tools: Path
) -> None:
    script(tools / "python3.11", "exit 127")
    script(
        tools / "python3.12", 'case "$1" in -c) exit 0;; --version) echo Twelve;; *) exit 1; esac'
    )
    done = set_up(tmp_path / "venv", tools)
    assert "with Twelve" in done.stdout
    assert "python3-venv" in done.stderr
    assert done.returncode == 69


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_help_lists_every_target() -> None:
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", "help"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert listed >= {
        "demo",
        "test",
        "lint",
        "type",
        "format",
        "lock",
        "pipelines",
        "images",
        "clean",
    }
