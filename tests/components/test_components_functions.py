"""Components called as plain functions, with stub artifacts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

pytest.importorskip("kfp")

from components.adapt_sam2.component import adapt_sam2
from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.plan_shards.component import plan_shards
from components.sam2_inference.component import sam2_inference
from components.train.component import train

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import DatasetManifest, Grid, Modality, Role, UnlabelledCase
from sssflow.contracts.prompts import CasePrompts, PromptSet
from sssflow.contracts.run import RunRecord
from sssflow.contracts.sam2_graphs import (
    SAM2_BUNDLE_FILE,
    Sam2Bundle,
    Sam2Gate,
    Sam2Graph,
    Sam2Rules,
)
from sssflow.errors import DataError
from sssflow.experiment import ExperimentConfig, parse_experiment
from sssflow.pipeline.shards import Shard
from sssflow.pipeline.store import write_pointer
from sssflow.pipeline.task import component_task
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import reference

EXPERIMENT = ExperimentConfig().model_dump_json()


class StubArtifact:
    """As much of a KFP artifact as a component touches."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.metadata: dict[str, object] = {}


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    case = UnlabelledCase(
        case_id="a",
        patient_id="a",
        image=ObjectRef(uri="x", size_bytes=0, sha256="0" * 64),
        grid=Grid(
            shape_shw=(1, 2, 2),
            spacing_shw_mm=(1.0, 1.0, 1.0),
            affine_ras=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        ),
        modality=Modality.MR,
    )
    manifest = DatasetManifest(
        name="made-by-hand",
        source_layout="none",
        class_names=("background", "disc"),
        source_digest="0" * 64,
        split_rule="by hand",
        cases=(case,),
    )
    return write_pointer(manifest, save_contract(manifest, tmp_path / "manifest.json"))


def call_ingest(tmp_path: Path, source: str, config_json: str = EXPERIMENT) -> str:
    return ingest.python_func(
        config_json=config_json,
        source=source,
        source_digest="",
        store_uri=str(tmp_path / "store"),
        dataset=StubArtifact(tmp_path / "artifact"),
    )


def test_shards_are_lines_of_json_with_all_pointers(tmp_path: Path, dataset: str) -> None:
    (line,) = plan_shards.python_func(
        config_json=EXPERIMENT,
        dataset=dataset,
        run="R",
        sam2="S",
        store_uri=str(tmp_path / "store"),
    )
    shard = Shard.from_json(line)
    assert (shard.label, shard.dataset, shard.run) == ("unlabelled 1/1", dataset, "R")
    assert shard.sam2 == "S"


def test_ingest_of_a_folder_that_is_not_there_exits_with_65_and_the_path(tmp_path, caplog) -> None:
    missing = str(tmp_path / "no-scans")
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as caught:
        call_ingest(tmp_path, missing)
    assert caught.value.code == 65
    assert missing in caplog.records[-1].getMessage()


def test_ingest_without_scans_and_without_phantoms_exits_with_64(tmp_path, caplog) -> None:
    with pytest.raises(SystemExit) as caught:
        call_ingest(tmp_path, "")
    assert caught.value.code == 64
    assert "no scans to ingest" in caplog.text


def test_an_unknown_key_of_the_experiment_exits_with_64_and_the_nearest_name(
    tmp_path, caplog
) -> None:
    with pytest.raises(SystemExit) as caught:
        call_ingest(tmp_path, "", json.dumps({"pipelin": {"shards": 1}}))
    assert caught.value.code == 64
    assert "did you mean 'pipeline'" in caplog.text


def test_ingest_of_phantoms_is_found_again_by_a_second_call(tmp_path: Path) -> None:
    config = ExperimentConfig.model_validate(
        {
            "phantoms": {"patients": 3, "hearts": {"in_plane_px": (32, 40), "slices": (3, 3)}},
            "ingest": {"layout": "acdc", "split": {"labelled": 1, "validation": 1}},
        }
    ).model_dump_json()
    first = call_ingest(tmp_path, "", config)
    manifests = list((tmp_path / "store").glob("ingest/*/manifest.json"))
    assert len(manifests) == 1
    before = manifests[0].stat().st_mtime_ns
    assert call_ingest(tmp_path, "", config) == first
    assert manifests[0].stat().st_mtime_ns == before


def test_a_corrected_split_file_gives_the_roles_that_it_says_now(tmp_path: Path) -> None:
    roles = tmp_path / "roles.json"
    config = ExperimentConfig.model_validate(
        {
            "phantoms": {"patients": 3, "hearts": {"in_plane_px": (32, 40), "slices": (3, 3)}},
            "ingest": {"layout": "acdc", "split": {"file": str(roles)}},
        }
    ).model_dump_json()
    found = []
    for labelled in ("patient001", "patient002"):
        roles.write_text(json.dumps({"labelled": [labelled]}))
        pointer = call_ingest(tmp_path, "", config)
        with component_task("look", "", str(tmp_path / "store")) as task:
            manifest, _ = task.read(DatasetManifest, pointer)
            found.append({case.patient_id for case in manifest.labelled(Role.LABELLED)})
    assert found == [{"patient001"}, {"patient002"}]


def exit_code_of_training(config: str, section: str, dataset: str, tmp_path: Path) -> object:
    """How the task of a training ends that must fail."""
    with pytest.raises(SystemExit) as caught:
        train.python_func(
            config_json=config,
            section=section,
            dataset=dataset,
            masks=[],
            start="",
            store_uri=str(tmp_path / "store"),
            model=StubArtifact(tmp_path / "model"),
            metrics=StubArtifact(tmp_path / "metrics"),
        )
    return caught.value.code


def test_training_of_a_section_that_does_not_exist_exits_with_64(tmp_path, dataset, caplog) -> None:
    assert exit_code_of_training(EXPERIMENT, "evaluate", dataset, tmp_path) == 64
    assert "warmup | baseline | train" in caplog.text


def test_a_file_replaced_under_its_name_is_another_input(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    with component_task("adapt_sam2", "", str(tmp_path / "store")) as task:
        folders = []
        for content in (b"one", b"two", b"one"):
            weights.write_bytes(content)
            folders.append(task.folder({"start": task.file_digest(str(weights))}))
        assert folders[0] == folders[2] != folders[1]
        assert task.file_digest(None) == ""
        with pytest.raises(DataError, match="cannot be read"):
            task.file_digest(str(tmp_path / "nothing.pt"))


def test_weights_that_are_not_there_exit_with_65_before_any_work(
    tmp_path: Path, dataset: str, caplog
) -> None:
    missing = str(tmp_path / "nothing.pt")
    with pytest.raises(SystemExit) as caught:
        adapt_sam2.python_func(
            config_json=json.dumps({"sam": {"weights": missing}}),
            dataset=dataset,
            store_uri=str(tmp_path / "store"),
            weights=StubArtifact(tmp_path / "weights"),
        )
    assert caught.value.code == 65
    assert missing in caplog.text
    assert not list((tmp_path / "store").glob("adapt_sam2/*"))


@pytest.mark.parametrize("intensity", [None, {"kind": "minmax"}])
def test_the_rule_of_intensities_is_part_of_what_an_adaptation_is_known_by(
    intensity: dict[str, str] | None, tmp_path: Path, dataset: str, monkeypatch
) -> None:
    """Results from before the rule was read must not be taken over; those without one must."""
    asked: list[Path] = []

    def run(_config: object, _sam: object, _dataset: Path, out: Path) -> None:
        asked.append(out)
        raise DataError("that is enough")

    monkeypatch.setattr("sssflow.sam.adapt.run", run)
    store = str(tmp_path / "store")
    config = json.dumps({"sam": {"intensity": intensity}})
    with pytest.raises(SystemExit):
        adapt_sam2.python_func(config, dataset, store, StubArtifact(tmp_path / "weights"))
    settings = parse_experiment(config)
    with component_task("adapt_sam2", "", store) as task:
        manifest, _ = task.read(DatasetManifest, dataset)
        before = {
            "config": settings.adapt.digest(),
            "sam": settings.sam.digest(),
            "start": "",
            "dataset": manifest.digest,
        }
        assert (asked == [task.folder(before)]) is (intensity is None)


def asked_of_baseline(config: str, dataset: str, tmp_path: Path, monkeypatch) -> Path:
    """The folder that the task of the baseline asks its training to write to."""
    asked: list[Path] = []

    def run(_config: object, _dataset: Path, out: Path, **_given: object) -> None:
        asked.append(out)
        raise DataError("that is enough")

    monkeypatch.setattr("sssflow.training.stage.run", run)
    exit_code_of_training(config, "baseline", dataset, tmp_path)
    (out,) = asked
    return out


def test_weights_of_a_student_replaced_under_their_name_are_another_training(
    tmp_path: Path, dataset: str, monkeypatch
) -> None:
    asked: list[Path] = []
    weights = tmp_path / "sam2.pt"
    network = {"name": "sam2", "sam2": {"weights": str(weights)}}
    settings = {"method": "supervised", "network": network}
    config = json.dumps({"baseline": {**settings, "preprocessing": {"size_hw": (64, 64)}}})
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        asked.append(asked_of_baseline(config, dataset, tmp_path, monkeypatch))
    assert asked[0] == asked[2] != asked[1]


def test_a_student_without_weights_of_its_own_is_known_by_what_it_always_was(
    tmp_path: Path, dataset: str, monkeypatch
) -> None:
    asked = asked_of_baseline(EXPERIMENT, dataset, tmp_path, monkeypatch)
    with component_task("train", "baseline", str(tmp_path / "store")) as task:
        manifest, _ = task.read(DatasetManifest, dataset)
        before = {
            "config": parse_experiment(EXPERIMENT).baseline.digest(),
            "dataset": manifest.digest,
            "start": "",
            "generalist": "",
            "generalist weights": "",
        }
        assert asked == task.folder(before)


@pytest.mark.parametrize("backend", ["torch", "onnx", "triton"])
def test_graphs_that_are_exported_again_under_their_old_name_are_another_input(
    backend: str, tmp_path: Path, dataset: str, monkeypatch
) -> None:
    asked: list[Path] = []

    def run(_config: object, _dataset: Path, _prompts: Path, out: Path, **_: object) -> None:
        asked.append(out)
        raise DataError("that is enough")

    monkeypatch.setattr("sssflow.sam.stage.run", run)
    rules = Sam2Rules(
        hints=True,
        multimask_min_points=0,
        multimask_max_points=1,
        memory_slots=7,
        max_pointers=16,
        pointers_signed=False,
        pointers_past_only=True,
    )
    prompts = PromptSet(
        dataset_digest="0" * 64,
        model_digest="0" * 64,
        config_digest="0" * 64,
        method="pcsw",
        class_names=("background", "disc"),
        cases=(),
    )
    pointer = write_pointer(prompts, save_contract(prompts, tmp_path / "prompts.json"))
    settings = {"backend": backend, "input_size": 64, "onnx": {"bundle": str(tmp_path / "sam2")}}
    shard = Shard(dataset=dataset, run="", role=Role.UNLABELLED, number=1, count=1)
    for weights in ("1" * 64, "2" * 64):
        file = ObjectRef(uri="64/encoder.onnx", size_bytes=0, sha256=weights)
        bundle = Sam2Bundle(
            variant="nano",
            sam2_version="2.1",
            precision="fp32",
            weights_sha256=weights,
            opset=18,
            width=128,
            memory_width=64,
            rules=rules,
            graphs=(Sam2Graph(graph="encoder", size_px=64, file=file, inputs=(), outputs=()),),
            gates=(Sam2Gate(size_px=64, gate="by hand", found=0, limit=1),),
        )
        save_contract(bundle, tmp_path / "sam2" / SAM2_BUNDLE_FILE)
        with pytest.raises(SystemExit):
            sam2_inference.python_func(
                config_json=json.dumps({"sam": settings}),
                shard=shard.to_json(),
                prompts=pointer,
                store_uri=str(tmp_path / "store"),
                masks=StubArtifact(tmp_path / "masks"),
            )
    first, second = asked
    assert (first == second) is (backend == "torch")


def test_figures_are_known_by_the_content_of_the_prompts_that_they_are_about(
    tmp_path: Path, dataset: str, monkeypatch
) -> None:
    """A folder's name says what its content was made from; a GPU may make it anew differently."""
    asked: list[Path] = []

    def run(_config: object, _dataset: Path, _models: object, out: Path, **_given: object) -> None:
        asked.append(out)
        raise DataError("that is enough")

    monkeypatch.setattr("sssflow.evaluation.stage.run", run)
    (tmp_path / "model.json").write_text("weights")
    record = RunRecord(
        **{"method": "supervised", "config": {}, "config_digest": "0" * 64, "seed": 1},
        **{"versions": {}, "inputs": {}, "steps": 1, "best_step": 1, "selection": "last"},
        **{"metrics": {}, "wall_time_s": 1.0, "device": "cpu"},
        model=reference(tmp_path / "model.json"),
    )
    trained = write_pointer(record, save_contract(record, tmp_path / "run.json"))
    for threshold in ("1", "2", "1"):
        prompts = PromptSet(
            dataset_digest="0" * 64,
            model_digest="1" * 64,
            method="pcsw",
            config_digest=threshold * 64,
            class_names=("background", "disc"),
            cases=(CasePrompts(case_id="measured", shape_shw=(1, 2, 2)),),
        )
        pointer = write_pointer(prompts, save_contract(prompts, tmp_path / "prompts.json"))
        with pytest.raises(SystemExit):
            evaluate.python_func(
                **{"config_json": EXPERIMENT, "dataset": dataset, "prompts": [pointer]},
                **{"baseline": trained, "headline": trained, "masks": []},
                store_uri=str(tmp_path / "store"),
                metrics=StubArtifact(tmp_path / "metrics"),
                report=StubArtifact(tmp_path / "report"),
            )
    assert asked[0] == asked[2] != asked[1]
