"""`sssflow pipeline fetch`, and what `watch` shows of a run that succeeded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("kfp")

from kfp_server_api import V2beta1RuntimeConfig
from run_outputs import make_outputs, move_to_s3

from kfp_server import FakeKfp, kfp_server
from kfp_server import run as state
from s3_server import Server
from sssflow.cli.main import run
from sssflow.pipeline.results import note_outputs
from sssflow.storage.digest import sha256_bytes, sha256_file

SCAN = b"pixels of a patient"


@pytest.fixture
def fake() -> Iterator[FakeKfp]:
    with kfp_server() as running:
        yield running


@pytest.fixture
def finished(
    fake: FakeKfp,
    tmp_path: Path,
    manifest,
    server: Server,
    s3_keys: None,
    monkeypatch: pytest.MonkeyPatch,
) -> FakeKfp:
    """A server with one run that succeeded; its results lie in S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uri = f"s3://bucket/{tmp_path.name}"
    outputs = make_outputs(tmp_path / "store", manifest)
    (tmp_path / "store" / "d" / "scan").write_bytes(SCAN)
    note_outputs(uri, "key-1", move_to_s3(outputs, tmp_path / "store", uri))
    fake.runs["run-1"] = state("SUCCEEDED")
    parameters = {"store_uri": uri, "run_key": "key-1"}
    fake.runs["run-1"].runtime_config = V2beta1RuntimeConfig(parameters=parameters)
    return fake


def fetch(fake: FakeKfp, out: Path, *more: str) -> int:
    return run(["pipeline", "fetch", "run-1", str(out), "--host", fake.url, *more])


def test_results_come_as_a_run_on_this_machine_leaves_them(finished, tmp_path, capsys) -> None:
    assert fetch(finished, tmp_path / "out", "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert fetch(finished, tmp_path / "out") == 0
    out = tmp_path / "out"
    assert (out / "report.html").read_text() == "<html></html>"
    assert (out / "bundle" / "student.onnx").read_bytes() == b"graph"
    assert (out / "tensorboard" / "headline" / "curve").read_text() == "headline"
    told = capsys.readouterr().out
    assert "Dice, sss" in told
    assert "75.0 %" in told
    assert fetch(finished, out) == 0
    left = [p.name for p in tmp_path.iterdir() if p.name.startswith("sssflow-store")]
    assert left == []


def test_the_scans_of_the_dataset_stay_in_the_store(finished, tmp_path) -> None:
    assert fetch(finished, tmp_path / "out") == 0
    assert (tmp_path / "out" / "dataset.json").is_file()
    brought = {path.name for path in tmp_path.glob("sssflow-cache-*/??/*")}
    assert sha256_file(tmp_path / "out" / "report.html") in brought
    assert sha256_bytes(SCAN) not in brought


def test_watching_ends_with_the_figures_and_the_next_command(finished, capsys) -> None:
    where = ("--host", finished.url, "--kubeconfig", "none")
    assert run(["pipeline", "watch", "run-1", *where]) == 0
    told = capsys.readouterr().out
    assert "Dice, sss" in told
    assert f"pipeline fetch run-1 OUT --host {finished.url}" in told


def test_only_a_run_that_succeeded_has_results(fake: FakeKfp, tmp_path: Path, capsys) -> None:
    fake.runs["run-1"] = state("FAILED")
    assert fetch(fake, tmp_path / "out") == 64
    assert "pipeline resume run-1" in capsys.readouterr().err


def test_a_run_whose_results_nobody_noted_says_so(finished, tmp_path, capsys) -> None:
    finished.runs["run-1"].runtime_config.parameters["run_key"] = "other"
    assert fetch(finished, tmp_path / "out") == 65
    assert "--no-cache" in capsys.readouterr().err


def test_a_folder_with_something_else_is_refused(finished, tmp_path, capsys) -> None:
    (tmp_path / "out" / "bundle").mkdir(parents=True)
    assert fetch(finished, tmp_path / "out") == 64
    assert "something else" in capsys.readouterr().err
