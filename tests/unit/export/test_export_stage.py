"""The export stage: the graph, what it tells about itself, and when nothing is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sssflow.contracts.bundle import ModelBundle
from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.run import RunRecord
from sssflow.errors import DataError, InternalError
from sssflow.export import stage
from sssflow.export.config import ExportConfig
from sssflow.export.onnx import export_graph, serialise
from sssflow.export.parity import onnx_runner
from sssflow.networks.trained import load_model
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, verified_path

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def exported(ready, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle")
    stage.run(ExportConfig(intended_use="Tests."), ready.model, ready.dataset, out)
    return out


@pytest.fixture
def bundle(exported: Path) -> ModelBundle:
    return load_contract(ModelBundle, exported / "bundle.json")


def record_of(model: Path, sha256: str | None = None) -> RunRecord:
    found = reference(model, base=model.parents[1])
    return RunRecord(
        method="supervised",
        config={},
        config_digest="1" * 64,
        seed=11,
        versions={"torch": "x"},
        inputs={},
        steps=9,
        best_step=5,
        selection="best on validation",
        metrics={},
        model=found if sha256 is None else found.model_copy(update={"sha256": sha256}),
        wall_time_s=12.0,
        device="cpu",
        notes=("A note of the run.",),
    )


def test_the_bundle_lists_files_that_are_there(exported: Path, bundle: ModelBundle) -> None:
    for ref in (bundle.onnx, bundle.model_card):
        verified_path(ref, base=exported)
    assert sorted(p.name for p in exported.iterdir()) == [
        "bundle.json",
        "model_card.md",
        "student.onnx",
    ]


def test_the_graph_is_one_file_of_opset_18_that_the_checker_accepts(exported: Path) -> None:
    model = onnx.load(exported / "student.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert not any(t.external_data for t in model.graph.initializer)


def test_the_graph_runs_at_batch_one_and_at_any_multiple_of_the_stride(ready, exported) -> None:
    net = load_model(ready.model).net
    run = onnx_runner((exported / "student.onnx").read_bytes())
    for shape in ((1, 1, 16, 24), (3, 1, 4, 4), (2, 1, 40, 8)):
        image = torch.rand(shape)
        with torch.no_grad():
            expected = net(image).numpy()
        np.testing.assert_allclose(run(image.numpy()), expected, rtol=0, atol=1e-5)


def test_the_tensors_are_named_as_the_bundle_says(exported: Path, bundle: ModelBundle) -> None:
    graph = onnx.load(exported / "student.onnx").graph
    for found, told in ((graph.input, bundle.inputs), (graph.output, bundle.outputs)):
        (tensor,), (contract,) = found, told
        dims = tensor.type.tensor_type.shape.dim
        assert tensor.name == contract.name
        assert tuple(d.dim_param or d.dim_value for d in dims) == contract.shape
    assert bundle.outputs[0].shape == ("batch", 3, "4*rows", "4*cols")


def test_the_file_tells_what_a_user_of_it_must_know(ready, exported, bundle) -> None:
    model = onnx.load(exported / "student.onnx")
    told = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(told["sssflow.class_names"]) == ["background", "ring", "disc"]
    assert json.loads(told["sssflow.preprocessing"])["size_hw"] == [16, 24]
    assert json.loads(told["sssflow.spacing_shw_mm"]) == list(bundle.spacing_shw_mm)
    assert told["sssflow.model_digest"] == load_model(ready.model).digest
    manifest = load_contract(DatasetManifest, ready.dataset)
    assert told["sssflow.dataset_digest"] == manifest.digest
    assert told["sssflow.intended_use"] == "Tests."


def test_the_file_knows_nothing_of_the_machine_that_made_it(exported: Path) -> None:
    data = (exported / "student.onnx").read_bytes()
    assert b"site-packages" not in data
    assert str(Path.cwd()).encode() not in data
    assert str(Path(stage.__file__).parents[1]).encode() not in data


def test_parity_figures_hold_both_sizes(bundle: ModelBundle) -> None:
    assert [f.shape[2:] for f in bundle.parity] == [(16, 24), (24, 36)]
    assert all(f.max_abs_difference <= 1e-4 and f.masks_equal for f in bundle.parity)


def test_equal_weights_give_equal_bytes(ready, exported: Path) -> None:
    graph = export_graph(load_model(ready.model), opset=18)
    original = onnx.load(exported / "student.onnx")
    del original.metadata_props[:]
    assert serialise(graph) == serialise(original)


def test_spacing_is_the_median_of_the_training_cases(ready) -> None:
    manifest = load_contract(DatasetManifest, ready.dataset)
    # a, b, c: slices 8, 9, 10 mm; columns 2, 4, 6 mm; the validation case d does not count
    assert stage.median_spacing(manifest) == (9.0, 1.0, 4.0)


def test_spacing_is_unknown_where_the_source_stores_none(ready) -> None:
    manifest = load_contract(DatasetManifest, ready.dataset)
    unknown = tuple(
        case.model_copy(update={"grid": case.grid.model_copy(update={"spacing_known": False})})
        for case in manifest.cases
    )
    assert stage.median_spacing(manifest.model_copy(update={"cases": unknown})) is None


def test_a_failing_gate_publishes_nothing(ready, tmp_path, monkeypatch) -> None:
    def off(data: bytes):
        right = onnx_runner(data)
        return lambda image_bchw: right(image_bchw) + np.float32(1e-2)

    monkeypatch.setattr(stage, "onnx_runner", off)
    out = tmp_path / "out"
    with pytest.raises(InternalError, match=r"largest difference 0\.01"):
        stage.run(ExportConfig(), ready.model, ready.dataset, out)
    assert not out.exists()


def test_a_model_of_another_dataset_is_refused(ready, tmp_path) -> None:
    manifest = load_contract(DatasetManifest, ready.dataset).model_copy(update={"name": "other"})
    other = save_contract(manifest, tmp_path / "manifest.json")
    with pytest.raises(DataError, match="another dataset"):
        stage.run(ExportConfig(), ready.model, other, tmp_path / "out")


def test_a_record_of_another_model_is_refused(ready, tmp_path) -> None:
    run = save_contract(record_of(ready.model, "2" * 64), tmp_path / "run.json")
    with pytest.raises(DataError, match="about another model"):
        stage.run(ExportConfig(), ready.model, ready.dataset, tmp_path / "out", run=run)


def test_damaged_weights_are_refused_and_nothing_is_published(ready, tmp_path) -> None:
    folder = shutil.copytree(ready.model.parent, tmp_path / "model")
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    out = tmp_path / "out"
    with pytest.raises(DataError):
        stage.run(ExportConfig(), folder / "model.json", ready.dataset, out)
    assert not out.exists()
