"""The compiled pipeline as pods of a real cluster, with S3 and the chart's Triton."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeline_site import (
    BUCKET,
    TRITON_SERVICE,
    PipelineRun,
    PipelineSite,
    add_secret,
    install_triton,
)

from sssflow.contracts.masks import MaskSet
from sssflow.contracts.sam2_graphs import SAM2_BUNDLE_FILE, Sam2Bundle
from sssflow.pipeline.ir import compiled_pipeline
from sssflow.pipeline.local import run_local
from sssflow.pipeline.mirror import PARTIAL_FILE
from sssflow.pipeline.results import Gathered
from sssflow.storage.contracts import load_contract
from sssflow.storage.places import open_place, push_tree, read_tree

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

KILL = (
    "import os; mine = os.getpid(); "
    "[os.kill(int(p), 9) for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, mine)]"
)
MODELS = [
    *("sam2_encoder", "sam2_decoder", "sam2_memory_attention", "sam2_memory_encoder"),
    "sam2_predict",
]
STUDENT: dict[str, Any] = {
    "network": {"base_channels": 8, "levels": 3},
    "preprocessing": {"size_hw": [64, 64]},
    "batch_labelled": 4,
    "batch_unlabelled": 4,
    "eval_every": 50,
}
TASKS = (
    *("ingest", "train", "train-2", "train-3", "adapt-sam2", "plan-shards", "generate-prompts"),
    *("sam2-inference", "evaluate", "export-onnx"),
)
SHARED_MEMORY = {"train", "train-2", "train-3", "adapt-sam2", "sam2-inference", "evaluate"}
JOB = "batch.kubernetes.io/job-name"
SHARDS = 3  # two of unlabelled cases, one of the validation cases
EXPERIMENT: dict[str, Any] = {
    "name": "cluster",
    "ingest": {"layout": "acdc", "split": {"labelled": 2, "validation": 1, "test": 1}},
    "warmup": {"method": "supervised", "steps": 150, **STUDENT},
    "baseline": {"method": "supervised", "steps": 150, **STUDENT},
    "adapt": {"steps": 0},
    "train": {"method": "sss", "steps": 60, "checkpoint_every_steps": 5, **STUDENT},
    "evaluate": {"bootstrap_resamples": 100, "permutation_flips": 100},
    "pipeline": {"shards": 2},
}


def sam(bundle: str, url: str) -> dict[str, Any]:
    return {
        "backend": "triton",
        "input_size": 64,
        "onnx": {"bundle": bundle},
        "triton": {"url": url},
    }


@dataclass(frozen=True)
class Study:
    """One disturbed run on the cluster, and what it was given.

    Attributes:
        site: Where it ran.
        scans: The scans, here.
        source_digest: Their digest.
        bundle: SAM-2's graphs, here.
        run: The run.
        result: What it ended with, brought here and verified.
        killed: Task to the name of its pod that was killed.
    """

    site: PipelineSite
    scans: Path
    source_digest: str
    bundle: Path
    run: PipelineRun
    result: Gathered
    killed: dict[str, str]


@pytest.fixture(scope="module")
def scans(site: PipelineSite) -> Path:
    from sssflow.ingest.phantoms.config import HeartConfig, PhantomConfig
    from sssflow.ingest.phantoms.stage import run

    hearts = HeartConfig(in_plane_px=(64, 72), slices=(12, 14))
    run(PhantomConfig(patients=24, seed=3, hearts=hearts), site.folder / "scans")
    return site.folder / "scans"


@pytest.fixture(scope="module")
def bundle(site: PipelineSite, triton_image: str) -> Path:
    """Nano SAM-2 as ONNX graphs; the chart's Triton serves them from S3."""
    from sssflow.export import sam2_stage
    from sssflow.export.config import Sam2ExportConfig

    folder = site.folder / "sam2"
    sam2_stage.run(Sam2ExportConfig(sizes_px=(64,)), folder)
    push_tree(folder, open_place(f"{site.uri}/sam2"))
    install_triton(site, triton_image, folder, MODELS)
    return folder


@pytest.fixture(scope="module")
def study(site: PipelineSite, scans: Path, bundle: Path) -> Study:
    tree = push_tree(scans, open_place(f"{site.uri}/scans"))
    run = site.start("first", parameters_there(site, tree.digest))
    try:
        inference = run.until("a case of a shard", lambda: at_work(run))
        site.kubectl("exec", inference, "--", "python3", "-c", KILL, check=False)
        training = run.until("a checkpoint in S3", lambda: with_checkpoint(site, run))
        site.kubectl("exec", training, "--", "python3", "-c", KILL, check=False)
        killed = {"sam2-inference": inference, "train-3": training}
        result = run.result()
    finally:
        run.stop()
    return Study(site, scans, tree.digest, bundle, run, result, killed)


def parameters(bundle: str, url: str, source: str, digest: str) -> dict[str, str]:
    """Parameters of the pipeline, the store aside."""
    config = {**EXPERIMENT, "sam": sam(bundle, url)}
    return {"config_json": json.dumps(config), "source": source, "source_digest": digest}


def parameters_there(site: PipelineSite, digest: str) -> dict[str, str]:
    """Parameters of a run that finds everything in the cluster."""
    url = f"grpc://{TRITON_SERVICE}.{site.namespace}.svc.cluster.local:8001"
    found = parameters(f"{site.uri}/sam2", url, f"{site.uri}/scans", digest)
    return {**found, "store_uri": f"{site.uri}/store"}


def at_work(run: PipelineRun) -> str:
    """A pod that has finished a case of its shard and not all; empty if none."""
    for pod in run.running_pods("sam2-inference"):
        done = re.findall(r"case (\d+) of (\d+)", run.pod_log(pod))
        if done and done[-1][0] != done[-1][1]:
            return pod
    return ""


def with_checkpoint(site: PipelineSite, run: PipelineRun) -> str:
    """The running pod of the headline's training as soon as a checkpoint is in S3; else empty."""
    pods = run.running_pods("train-3")
    for key in site.keys("store/train/") if pods else ():
        if key.endswith(f"/{PARTIAL_FILE}"):
            place = open_place(f"s3://{BUCKET}/{key.removesuffix('/' + PARTIAL_FILE)}")
            tree = read_tree(place, manifest=PARTIAL_FILE)
            if tree and any("checkpoints/" in ref.uri for ref in tree.files):
                return pods[0]
    return ""


def pods_by_job(study: Study, task: str) -> list[list[dict[str, Any]]]:
    """The pods of each Job of a task, oldest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for pod in study.run.pods(task):
        found.setdefault(pod["metadata"]["labels"][JOB], []).append(pod)
    return list(found.values())


def successor(study: Study, task: str) -> str:
    """Log of the one pod that took the killed pod's place and went well."""
    for pods in pods_by_job(study, task):
        names = [pod["metadata"]["name"] for pod in pods]
        if study.killed[task] in names:
            assert [pod["status"]["phase"] for pod in pods] == ["Failed", "Succeeded"]
            return study.run.pod_log(names[1])
    raise AssertionError(f"the killed pod of {task} is not there")


def test_every_stage_runs_as_pods_of_a_restricted_namespace(study: Study) -> None:
    pods = study.run.pods()
    tasks = {pod["metadata"]["labels"]["sssflow-test/task"] for pod in pods}
    assert tasks == set(TASKS)
    namespace = study.site.cluster.get("namespace", study.site.namespace)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert container["image"] == study.site.image
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
    shared = {
        pod["metadata"]["labels"]["sssflow-test/task"]
        for pod in pods
        for mount in pod["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "shared-memory"
    }
    assert shared == SHARED_MEMORY


def test_masks_come_from_the_triton_of_the_chart(study: Study) -> None:
    found = mask_sets(study.site)
    assert len(found) == SHARDS
    assert {masks.backend for masks in found.values()} == {"triton"}
    assert all(any(case.objects for case in masks.cases) for masks in found.values())
    bundle = load_contract(Sam2Bundle, study.bundle / SAM2_BUNDLE_FILE)
    assert {masks.model_digest for masks in found.values()} == {bundle.digest}


def mask_sets(site: PipelineSite) -> dict[str, MaskSet]:
    """Folder in S3 to the mask set that was published there."""
    found = {}
    for key in site.keys("store/sam2_inference/"):
        if key.endswith("/masks.json"):
            place = open_place(f"s3://{BUCKET}/{key.removesuffix('/masks.json')}")
            data = place.get_bytes("masks.json")
            assert data is not None
            found[key.removesuffix("/masks.json")] = MaskSet.from_json(data, where=key)
    return found


def test_after_a_killed_inference_its_shard_is_finished_and_no_other_begins_again(
    study: Study,
) -> None:
    assert re.search(r"case (\d+) of \1\b", successor(study, "sam2-inference"))
    assert sorted(len(pods) for pods in pods_by_job(study, "sam2-inference")) == [1, 1, 2]


def test_a_killed_training_goes_on_from_its_checkpoint(study: Study) -> None:
    log = successor(study, "train-3")
    assert "files of an interrupted task" in log
    assert re.search(r"resuming after step [1-9]\d* of 60", log)


def test_the_disturbed_run_ends_with_the_digests_of_an_undisturbed_local_run(
    study: Study, tmp_path: Path
) -> None:
    site = study.site
    with site.cluster.port_forward(site.namespace, f"service/{TRITON_SERVICE}", 8001) as port:
        url = f"grpc://127.0.0.1:{port}"
        given = parameters(str(study.bundle), url, str(study.scans), study.source_digest)
        local = run_local(compiled_pipeline(), given, tmp_path / "local")
    there = study.result
    for name in ("warmup", "baseline", "headline"):
        ours, theirs = local.runs[name], there.runs[name]
        assert (theirs.model.sha256, theirs.inputs) == (ours.model.sha256, ours.inputs), name
        assert theirs.history == ours.history, name
    assert there.summary.models == local.summary.models
    assert there.summary.gain == local.summary.gain
    assert there.summary.files["cases"].sha256 == local.summary.files["cases"].sha256
    assert there.bundle.onnx.sha256 == local.bundle.onnx.sha256


def test_wrong_keys_end_a_task_with_the_reason_and_are_not_shown(
    site: PipelineSite, scans: Path
) -> None:
    wrong = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "sesame-open-now"}
    add_secret(site, "wrong-keys", wrong)
    given = parameters_there(site, "0" * 64)
    run = site.start("wrong", given, secret="wrong-keys", retries=0)  # noqa: S106 - its name
    run.fails()
    (pod,) = run.pods()
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    told = run.pod_log(pod["metadata"]["name"])
    assert ended["exitCode"] == 64, told[-2000:]
    assert "this object with these credentials." in told
    assert wrong["AWS_SECRET_ACCESS_KEY"] not in told + run.log()
