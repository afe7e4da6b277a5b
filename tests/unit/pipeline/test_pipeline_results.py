"""Names, figures and the gathering of results."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from s3_server import Server
from sssflow.contracts.base import ObjectRef
from sssflow.contracts.bundle import ModelBundle, ParityFigure
from sssflow.contracts.evaluation import EvaluationSummary, Figure, ModelFigures, PairedGain
from sssflow.contracts.model import Preprocessing
from sssflow.contracts.run import RunRecord
from sssflow.errors import DataError, InternalError, UsageError
from sssflow.pipeline.results import collect, headline_metrics, model_names, require_own_folder
from sssflow.pipeline.store import Store, write_pointer
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import reference
from sssflow.storage.places import open_place, push_tree
from sssflow.storage.uri import to_path

DIGEST = "1" * 64


def record(method: str, model: ObjectRef | None = None) -> RunRecord:
    return RunRecord(
        method=method,
        config={},
        config_digest=DIGEST,
        seed=1,
        versions={},
        inputs={},
        steps=1,
        best_step=1,
        selection="last",
        metrics={},
        model=model or ObjectRef(uri="model/model.json", size_bytes=0, sha256=DIGEST),
        wall_time_s=1.0,
        device="cpu",
    )


def summary(files: dict[str, ObjectRef]) -> EvaluationSummary:
    figures = {
        name: ModelFigures(
            name=name,
            model_digest=DIGEST,
            method=name,
            step=1,
            strict={"dice": Figure(value=value)},
            ssl4mis={},
            per_class={},
        )
        for name, value in (("supervised", 0.5), ("sss", 0.75))
    }
    return EvaluationSummary(
        dataset_name="d",
        dataset_digest=DIGEST,
        split_rule="by hand",
        roles=("test",),
        cases=1,
        patients=1,
        distance_unit="mm",
        class_names=("background", "disc"),
        config={},
        config_digest=DIGEST,
        versions={},
        conventions={},
        models=tuple(figures.values()),
        gain=PairedGain(
            metric="dice",
            baseline="supervised",
            headline="sss",
            gain=0.25,
            low=None,
            high=None,
            p_value=None,
            test="none",
            patients=1,
        ),
        files=files,
    )


def store(folder: Path) -> Store:
    return Store(str(folder / "store"), program=DIGEST)


@pytest.fixture
def outputs(tmp_path: Path, manifest) -> dict[str, str]:
    """Pointers to the results of a run that never was."""
    store = tmp_path / "store"
    found = {"dataset": write_pointer(manifest, save_contract(manifest, store / "d" / "m.json"))}
    for name, method in (("warmup", "supervised"), ("baseline", "supervised"), ("headline", "sss")):
        path = save_contract(record(method), store / name / "run.json")
        (store / name / "tensorboard").mkdir()
        (store / name / "tensorboard" / "curve").write_text(name)
        found[name] = write_pointer(record(method), path)
    evaluation = store / "evaluate"
    (evaluation / "metrics").mkdir(parents=True)
    (evaluation / "metrics" / "cases.csv").write_text("case\n")
    (evaluation / "report.html").write_text("<html></html>")
    told = summary({"report": reference(evaluation / "report.html")})
    found["evaluation"] = write_pointer(told, save_contract(told, evaluation / "evaluation.json"))
    bundle_folder = store / "export"
    bundle_folder.mkdir()
    (bundle_folder / "student.onnx").write_bytes(b"graph")
    ref = reference(bundle_folder / "student.onnx")
    bundle = ModelBundle(
        onnx=ref,
        model_card=ref,
        opset=18,
        inputs=(),
        outputs=(),
        preprocessing=Preprocessing(),
        class_names=("background", "disc"),
        spacing_shw_mm=None,
        parity=(
            ParityFigure(
                shape=(1,), source="s", max_abs_difference=0.0, tolerance=1.0, masks_equal=True
            ),
        ),
        model_digest=DIGEST,
        dataset_digest=DIGEST,
        intended_use="tests",
    )
    found["bundle"] = write_pointer(bundle, save_contract(bundle, bundle_folder / "bundle.json"))
    return found


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
    # A result lies two levels below the root of a store; these pointers lie one level below.
    moved = {}
    for name, text in outputs.items():
        old = json.loads(text)
        folder = to_path(old["uri"]).parent
        push_tree(folder, open_place(f"{address}/{folder.name}/{DIGEST[:24]}"))
        uri = f"{address}/{folder.name}/{DIGEST[:24]}/{to_path(old['uri']).name}"
        moved[name] = json.dumps({**old, "uri": uri})
    shutil.rmtree(here)
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
        "runs/baseline/run.json",
        "runs/headline/run.json",
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
