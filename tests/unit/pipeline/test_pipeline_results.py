"""Names, figures and the gathering of results."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from run_outputs import DIGEST, make_outputs, move_to_s3, record, summary

from s3_server import Server
from sssflow.errors import DataError, InternalError, UsageError
from sssflow.pipeline.results import (
    collect,
    headline_metrics,
    model_names,
    note_outputs,
    noted_outputs,
    require_own_folder,
)
from sssflow.pipeline.store import Store


def store(folder: Path) -> Store:
    return Store(str(folder / "store"), program=DIGEST)


@pytest.fixture
def outputs(tmp_path: Path, manifest) -> dict[str, str]:
    return make_outputs(tmp_path / "store", manifest)


def test_results_of_a_store_in_s3_are_brought_here_and_gathered(
    outputs: dict[str, str],
    tmp_path: Path,
    server: Server,
    s3_keys: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    here, address = tmp_path / "store", f"s3://bucket/{tmp_path.name}"
    moved = move_to_s3(outputs, here, address)
    with contextlib.closing(Store(address, program=DIGEST)) as away:
        gathered = collect(moved, tmp_path / "out", store=away)
    assert gathered.report == tmp_path / "out" / "report.html"
    assert (tmp_path / "out" / "bundle" / "student.onnx").read_bytes() == b"graph"
    assert (tmp_path / "out" / "tensorboard" / "headline" / "curve").read_text() == "headline"


def test_models_are_named_by_their_method() -> None:
    assert model_names([record("supervised"), record("sss")]) == ["supervised", "sss"]


def test_equal_methods_are_told_apart_by_number() -> None:
    assert model_names([record("sss"), record("sss")]) == ["sss-1", "sss-2"]


def test_the_run_page_shows_each_model_and_the_gain() -> None:
    assert headline_metrics(summary({})) == {
        "supervised_dice": 0.5,
        "sss_dice": 0.75,
        "gain_dice": 0.25,
    }


def test_results_are_gathered_for_a_reader(tmp_path: Path, outputs: dict[str, str]) -> None:
    out = tmp_path / "out"
    gathered = collect(outputs, out, store=store(tmp_path))
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert files == [
        ".sssflow-results",
        "bundle/bundle.json",
        "bundle/student.onnx",
        "dataset.json",
        "evaluation.json",
        "metrics/cases.csv",
        "report.html",
        "runs/baseline/model/model.json",
        "runs/baseline/run.json",
        "runs/headline/model/model.json",
        "runs/headline/run.json",
        "runs/warmup/model/model.json",
        "runs/warmup/run.json",
        "tensorboard/baseline/curve",
        "tensorboard/headline/curve",
        "tensorboard/warmup/curve",
    ]
    assert gathered.report == out / "report.html"
    assert gathered.runs["headline"].method == "sss"


def test_results_of_an_earlier_run_are_replaced(tmp_path: Path, outputs: dict[str, str]) -> None:
    out = tmp_path / "out"
    collect(outputs, out, store=store(tmp_path))
    (out / "bundle" / "old.onnx").write_bytes(b"old")
    collect(outputs, out, store=store(tmp_path))
    assert not (out / "bundle" / "old.onnx").exists()


def test_predictions_of_an_earlier_run_do_not_stay_beside_the_report_of_another(
    tmp_path: Path, outputs: dict[str, str]
) -> None:
    """This one wrote none, and has no curves of the warm-up."""
    out = tmp_path / "out"
    collect(outputs, out, store=store(tmp_path))
    (out / "predictions" / "sss").mkdir(parents=True)
    shutil.rmtree(tmp_path / "store" / "warmup" / "tensorboard")
    collect(outputs, out, store=store(tmp_path))
    assert not (out / "predictions").exists()
    assert sorted(path.name for path in (out / "tensorboard").iterdir()) == ["baseline", "headline"]


def test_files_of_somebody_else_are_never_replaced(tmp_path, outputs) -> None:
    out = tmp_path / "out"
    (out / "metrics").mkdir(parents=True)
    (out / "metrics" / "thesis.csv").write_text("precious")
    with pytest.raises(UsageError, match="something else"):
        collect(outputs, out, store=store(tmp_path))
    assert (out / "metrics" / "thesis.csv").read_text() == "precious"


def test_a_folder_with_files_of_other_names_may_take_the_results(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    require_own_folder(tmp_path)


@pytest.mark.parametrize("name", ["dataset", "headline", "evaluation", "bundle"])
def test_a_run_without_one_of_its_results_is_no_success(tmp_path, outputs, name: str) -> None:
    with pytest.raises(InternalError, match=f"missing: {name}"):
        collect({**outputs, name: ""}, tmp_path / "out", store=store(tmp_path))


def test_a_report_that_changed_after_its_digest_was_taken_is_refused(tmp_path, outputs) -> None:
    (tmp_path / "store" / "evaluate" / "report.html").write_text("<html>!</html>")
    with pytest.raises(DataError):
        collect(outputs, tmp_path / "out", store=store(tmp_path))


def test_what_a_run_ended_with_is_found_by_its_key(outputs: dict[str, str], tmp_path) -> None:
    address = (tmp_path / "store").as_uri()
    note_outputs(address, "abc", outputs)
    assert noted_outputs(address, "abc") == outputs
    assert (tmp_path / "store" / "runs" / "abc.json").is_file()
    for unknown in ("abd", ""):
        with pytest.raises(DataError, match="--no-cache"):
            noted_outputs(address, unknown)
    with pytest.raises(DataError):
        noted_outputs(address, "../abc")
