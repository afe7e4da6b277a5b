"""Every config.pbtxt of every profile is the golden one, and the server takes those for CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository
from sssflow.errors import DataError, UsageError
from sssflow.serving import repository
from sssflow.serving.config import RepositoryConfig
from sssflow.serving.local_triton import ServerState
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import sha256_file, verified_path

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "triton"
MODELS = (
    "sam2_encoder",
    "sam2_decoder",
    "sam2_memory_attention",
    "sam2_memory_encoder",
    "sam2_predict",
    "segmenter_net",
    "segmenter",
)


@pytest.mark.parametrize("profile", ["cpu", "cpu-onnxruntime", "gpu", "gpu-tensorrt"])
def test_the_configs_of_a_profile_are_the_golden_ones(
    profile: str, nano_bundle: Path, student_bundle: Path, tmp_path: Path
) -> None:
    made = repository.run(
        RepositoryConfig(profile=profile),
        tmp_path,
        sam2=nano_bundle / "bundle.json",
        segmenter=student_bundle,
    )
    assert tuple(model.name for model in made.models) == MODELS
    # The one digest in them changes with the versions of the exporter.
    encoder = sha256_file(nano_bundle / "128" / "encoder.onnx")
    for name in MODELS:
        found = (tmp_path / name / "config.pbtxt").read_text("utf-8")
        golden = (GOLDEN / profile / f"{name}.pbtxt").read_text("utf-8")
        assert found == golden.replace("ENCODER_SHA256", encoder), name


def test_a_repository_written_over_another_is_what_a_server_would_take(
    student_bundle: Path, tmp_path: Path
) -> None:
    repository.run(RepositoryConfig(), tmp_path, segmenter=student_bundle, version=3)
    repository.run(RepositoryConfig(), tmp_path, segmenter=student_bundle)
    folders = [path for path in (tmp_path / "segmenter_net").iterdir() if path.is_dir()]
    assert [folder.name for folder in folders] == ["1"]


def test_a_repository_that_is_half_replaced_has_no_description(
    student_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.run(RepositoryConfig(), tmp_path, segmenter=student_bundle)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repository, "to_pbtxt", killed)
    with pytest.raises(KeyboardInterrupt):
        repository.run(RepositoryConfig(threads=1), tmp_path, segmenter=student_bundle)
    assert not (tmp_path / REPOSITORY_FILE).exists()


def test_the_server_runs_every_warm_up_before_a_model_is_ready(
    own_server: Callable[..., ServerState], tmp_path: Path
) -> None:
    own_server(extra=("--log-verbose=1",))
    log = (tmp_path / "state" / "server.log").read_text("utf-8")
    assert set(re.findall(r"running warmup sample '(\w+)'", log)) == {"slices_1", "slices_8"}
    assert "Skipping" not in log


def test_tensorrt_gets_the_graphs_alone_whose_shapes_its_warm_ups_bound() -> None:
    profile = GOLDEN / "gpu-tensorrt"
    found = {p.stem for p in profile.iterdir() if '"tensorrt"' in p.read_text("utf-8")}
    assert found == {"sam2_encoder", "segmenter_net"}
    encoder = (profile / "sam2_encoder.pbtxt").read_text("utf-8")
    assert re.findall(r"batch_size: (\d+)", encoder) == ["8", "1", "8"]


def test_the_repository_names_every_file_with_its_digest(served: Path) -> None:
    described = load_contract(ModelRepository, served / REPOSITORY_FILE)
    named = {ref.uri for model in described.models for ref in model.files}
    present = {
        path.relative_to(served).as_posix()
        for path in served.rglob("*")
        if path.is_file() and path.name != REPOSITORY_FILE and "__pycache__" not in path.parts
    }
    assert named == present
    assert len(named) == 19
    for model in described.models:
        for ref in model.files:
            verified_path(ref, base=served)


def test_a_served_python_file_imports_nothing_of_ours(served: Path) -> None:
    files = sorted(served.rglob("model.py"))
    assert len(files) == 7
    for file in files:
        assert not re.search(r"^\s*(from|import) sssflow", file.read_text("utf-8"), re.MULTILINE)


def test_nothing_to_serve_and_an_unknown_size_are_refused(
    nano_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="nothing to serve"):
        repository.run(RepositoryConfig(), tmp_path)
    with pytest.raises(UsageError, match="Which input size"):
        repository.run(RepositoryConfig(), tmp_path, sam2=nano_bundle / "bundle.json", size_px=512)


def test_a_bundle_whose_graph_was_changed_is_refused_and_no_repository_appears(
    student_bundle: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(student_bundle.parent, copy)
    with (copy / "student.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="another size"):
        repository.run(RepositoryConfig(), tmp_path / "out", segmenter=copy / "bundle.json")
    assert not (tmp_path / "out" / REPOSITORY_FILE).exists()
