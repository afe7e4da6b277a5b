"""The compiled pipeline: up to date, reproducible, and free of what fails on a real cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kfp")
pytest.importorskip("kfp.kubernetes")

from components import BASE_IMAGE
from sssflow.errors import UnavailableError, UsageError
from sssflow.pipeline.ir import compile_pipeline, compiled_pipeline
from sssflow.pipeline.results import OUTPUTS

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "pipelines" / "sss_training.yaml"
PARAMETERS = {"config_json", "store_uri", "source", "source_digest", "run_key"}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(COMMITTED.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def spec(documents) -> dict[str, Any]:
    return documents[0]


@pytest.fixture(scope="module")
def loop(spec) -> dict[str, Any]:
    return spec["components"]["comp-for-loop-1"]


def test_the_committed_pipeline_is_what_the_sources_compile_to(tmp_path: Path) -> None:
    made = compile_pipeline("sss_training", tmp_path / "made.yaml")
    assert made.read_bytes() == COMMITTED.read_bytes(), "run `make pipelines`"


def test_two_processes_with_other_hash_seeds_compile_to_equal_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sssflow.pipeline.ir import compile_pipeline; "
        "compile_pipeline('sss_training', Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / f"{seed}.yaml")],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            check=True,
        )
    assert (tmp_path / "1.yaml").read_bytes() == (tmp_path / "2.yaml").read_bytes()


def test_a_place_that_cannot_hold_the_compiled_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this is a folder") as caught:
        compile_pipeline("sss_training", tmp_path)
    assert str(tmp_path / "sss_training.yaml") in caught.value.action
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "made.yaml", tmp_path / ("n" * 300)):
        with pytest.raises(UnavailableError, match="cannot be written"):
            compile_pipeline("sss_training", target)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_package_finds_its_compiled_pipeline() -> None:
    assert compiled_pipeline().read_bytes() == COMMITTED.read_bytes()


def test_an_unknown_pipeline_is_refused() -> None:
    with pytest.raises(UsageError, match="sss_training"):
        compiled_pipeline("nothing")


def test_a_file_beside_the_pipelines_is_no_pipeline_to_compile(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no such pipeline"):
        compile_pipeline("compile", tmp_path / "made.yaml")


def test_compiling_outside_a_checkout_is_refused_with_the_compiled_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pipelines/sss_training\.py"):
        compile_pipeline("sss_training", tmp_path / "x.yaml", checkout=tmp_path)


def test_every_task_runs_the_placeholder_image_and_installs_nothing(spec) -> None:
    executors = spec["deploymentSpec"]["executors"]
    assert len(executors) == 10  # train comes three times
    for executor in executors.values():
        container = executor["container"]
        assert container["image"] == BASE_IMAGE
        assert "pip install" not in " ".join(container["command"])


def test_the_sdk_is_the_one_that_the_project_pins(spec) -> None:
    assert spec["sdkVersion"] == "kfp-2.17.0"
    assert spec["schemaVersion"] == "2.1.0"


def test_the_parameters_and_results_are_named(spec) -> None:
    assert set(spec["root"]["inputDefinitions"]["parameters"]) == PARAMETERS
    assert set(spec["root"]["outputDefinitions"]["parameters"]) == set(OUTPUTS)


def test_every_task_may_be_cached_and_gets_every_input(spec, loop) -> None:
    tasks = {**spec["root"]["dag"]["tasks"], **loop["dag"]["tasks"]}
    for name, task in tasks.items():
        component = spec["components"][task["componentRef"]["name"]]
        wanted = set(component.get("inputDefinitions", {}).get("parameters", {}))
        given = set(task.get("inputs", {}).get("parameters", {}))
        if "parameterIterator" in task:
            wanted -= {task["parameterIterator"]["itemInput"]}
        else:
            assert task["cachingOptions"]["enableCache"] is True, name
        assert wanted == given, name


def test_no_artifact_travels_between_tasks(spec, loop) -> None:
    tasks = {**spec["root"]["dag"]["tasks"], **loop["dag"]["tasks"]}
    assert len(tasks) == 11
    assert not [name for name, task in tasks.items() if "artifacts" in task.get("inputs", {})]


def test_only_the_item_and_the_run_s_parameters_enter_the_loop(spec, loop) -> None:
    # kfp's local runner puts the item in place of any output of a task outside the loop.
    inputs = set(loop["inputDefinitions"]["parameters"])
    assert inputs == {
        "pipelinechannel--config_json",
        "pipelinechannel--store_uri",
        "pipelinechannel--plan-shards-Output",
        "pipelinechannel--plan-shards-Output-loop-item",
    }


def test_nothing_is_conditional(documents) -> None:
    assert "triggerPolicy" not in COMMITTED.read_text(encoding="utf-8")


def test_tasks_that_run_pytorch_in_parallel_have_shared_memory(documents) -> None:
    mounts = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {"exec-train", "exec-train-2", "exec-train-3"} <= set(mounts)
    for mount in mounts.values():
        (volume,) = mount["emptyDirMounts"]
        assert (volume["mountPath"], volume["medium"]) == ("/dev/shm", "Memory")  # noqa: S108


def test_the_baseline_waits_for_the_warm_up_whose_result_it_may_use(spec) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    sections = {
        name: task["inputs"]["parameters"]["section"]["runtimeValue"]["constant"]
        for name, task in tasks.items()
        if name.startswith("train")
    }
    by_section = {section: name for name, section in sections.items()}
    assert set(by_section) == {"warmup", "baseline", "train"}
    assert by_section["warmup"] in tasks[by_section["baseline"]]["dependentTasks"]
