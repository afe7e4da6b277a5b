"""PyTorch and ONNX Runtime do the same, slice by slice, volume by volume, stage by stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from backend_contract import FLIP_LIMIT, INPUT_SIZE, BackendContract

from sssflow.contracts.masks import MaskSet
from sssflow.errors import DataError, UnavailableError, UsageError
from sssflow.sam import onnx_backend, stage
from sssflow.sam.config import OnnxConfig, SamConfig
from sssflow.sam.graph_promptable import PROMPT_CHUNK, GraphPromptable
from sssflow.sam.onnx_backend import load_onnx_promptable
from sssflow.sam.torch_backend import TorchPromptable, load_torch_promptable
from sssflow.storage.contracts import load_contract
from sssflow.volume.packed import read_packed


def _config(bundle: Path, **changes: object) -> SamConfig:
    onnx = OnnxConfig(bundle=str(bundle), threads=1)
    return SamConfig(backend="onnx", input_size=INPUT_SIZE, onnx=onnx).model_copy(update=changes)


class TestTorch(BackendContract):
    @pytest.fixture(scope="class")
    def model(self) -> TorchPromptable:
        return load_torch_promptable(SamConfig(input_size=INPUT_SIZE))


class TestOnnx(BackendContract):
    @pytest.fixture(scope="class")
    def model(self, nano_bundle: Path) -> GraphPromptable:
        return load_onnx_promptable(_config(nano_bundle))


def test_the_infer_stage_yields_the_same_masks_on_onnx(small_dataset, nano_bundle, tmp_path):
    dataset, prompts = small_dataset(2)
    torch_config = SamConfig(input_size=INPUT_SIZE)
    true = stage.run(torch_config, dataset, prompts, tmp_path / "torch")
    found = stage.run(_config(nano_bundle), dataset, prompts, tmp_path / "onnx")
    assert (true.backend, found.backend) == ("torch", "onnx")
    assert load_contract(MaskSet, tmp_path / "onnx" / "masks.json") == found
    for one, other in zip(found.cases, true.cases, strict=True):
        shape = (2, 7, 48, 56)
        a = read_packed(one.probability_kshw, base=tmp_path / "onnx", shape=shape).astype(int)
        b = read_packed(other.probability_kshw, base=tmp_path / "torch", shape=shape).astype(int)
        assert np.abs(a - b).max() <= 1
        assert np.mean((a >= 128) != (b >= 128)) <= FLIP_LIMIT
        for x, y in zip(one.objects, other.objects, strict=True):
            assert x.predicted_iou == pytest.approx(y.predicted_iou, abs=1e-4)


def test_at_most_a_chunk_of_prompts_runs_at_once_and_none_is_padded(nano_bundle):
    model = load_onnx_promptable(_config(nano_bundle))
    from sam_cases import bright_disc

    from sssflow.sam.geometry import full_window
    from sssflow.sam.promptable import Prompt

    image, _ = bright_disc()
    features = model.encode(image[:1], full_window(image.shape[1:]))
    asked: list[tuple[int, list[int]]] = []
    run = model._runner.run

    def spy(graph, inputs):
        if graph == "decoder":
            labels = inputs["point_labels"]
            asked.append((len(labels), (labels == -1).sum(axis=1).tolist()))
        return run(graph, inputs)

    model._runner.run = spy
    points = [Prompt(points_xy_px=((9, 9),), point_labels=(1,))] * (2 * PROMPT_CHUNK + 1)
    mask = Prompt(mask_logits_yx=np.zeros((INPUT_SIZE // 4,) * 2, np.float32))
    model.segment(features, 0, [*points, mask])
    assert [count for count, _ in asked] == [PROMPT_CHUNK, PROMPT_CHUNK, 1, 1]
    assert [set(pads) for _, pads in asked] == [{1}, {1}, {1}, {0}]


def test_onnx_without_a_bundle_is_refused():
    with pytest.raises(UsageError, match="needs exported graphs"):
        stage.load_promptable(SamConfig(backend="onnx"))


def test_a_folder_without_a_bundle_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_onnx_promptable(_config(tmp_path))


@pytest.mark.parametrize(
    "changes", [{"size": "tiny"}, {"input_size": 64}, {"version": "2.0"}], ids=str
)
def test_a_bundle_of_another_model_or_size_is_refused(nano_bundle, changes):
    with pytest.raises(UsageError, match="not those of the configuration"):
        load_onnx_promptable(_config(nano_bundle, **changes))


def test_a_bundle_of_other_weights_than_those_given_is_refused(nano_bundle, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    with pytest.raises(UsageError, match="export again"):
        load_onnx_promptable(_config(nano_bundle, weights=str(other)))
    with pytest.raises(DataError, match="missing"):
        load_onnx_promptable(_config(nano_bundle, weights=str(tmp_path / "none.pt")))


def test_a_changed_graph_is_refused_before_it_runs(nano_bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(nano_bundle, copy)
    graph = copy / str(INPUT_SIZE) / "decoder.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(DataError, match="another content"):
        load_onnx_promptable(_config(copy))


def test_a_file_that_is_no_graph_is_a_data_error(tmp_path):
    from sssflow.sam.onnx_backend import OnnxRunner

    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(DataError, match="cannot load a graph"):
        OnnxRunner({"encoder": path}).run("encoder", {})


@pytest.mark.parametrize(
    ("names_cuda", "has_gpu", "first"),
    [(False, True, "CPU"), (True, False, "CPU"), (True, True, "CUDA")],
)
def test_auto_needs_both_a_gpu_and_an_onnx_runtime_for_it(monkeypatch, names_cuda, has_gpu, first):
    names = ["CUDAExecutionProvider"] * names_cuda + ["CPUExecutionProvider"]
    runtime = SimpleNamespace(get_available_providers=lambda: names)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(has_gpu))
    chosen = onnx_backend._providers(runtime, "auto")[0]
    assert (chosen if isinstance(chosen, str) else chosen[0]) == f"{first}ExecutionProvider"


def test_a_device_that_is_not_there_or_unknown_is_refused(nano_bundle):
    with pytest.raises(UsageError, match="no such device"):
        load_onnx_promptable(_config(nano_bundle, device="quantum"))
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(UnavailableError, match="no CUDA"):
            load_onnx_promptable(_config(nano_bundle, device="cuda:0"))
