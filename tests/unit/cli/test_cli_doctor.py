"""The doctor lists everything and fails if something needed is missing."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from sssflow.cli import doctor
from sssflow.cli.main import run


def test_nothing_needed_is_missing_here(capsys: pytest.CaptureFixture[str]) -> None:
    findings = doctor.examine(Path.cwd())
    subjects = [finding.subject for finding in findings]
    assert len(subjects) == len(set(subjects)) == 13
    assert [f.subject for f in findings if f.state == "missing"] == []
    assert run(["doctor"]) == 0
    assert "all there" in capsys.readouterr().out


def test_a_missing_package_is_named_and_exit_69(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = metadata.version

    def version(name: str) -> str:
        if name in {"kfp", "tritonclient"}:
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert run(["doctor"]) == 69
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("missing: Kubeflow Pipelines (extra kfp)")
    assert "Triton" not in lines[-1]
