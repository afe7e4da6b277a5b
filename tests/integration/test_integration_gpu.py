"""A task that asks for a GPU: scheduled by the advertised resource and the toleration, or not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import Cluster
from kfp import compiler, dsl
from pipeline_site import PipelineSite

from components import BASE_IMAGE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

GPU = "nvidia.com/gpu"
TAINT = "sssflow.test/gpu"
ON_GPU_NODES: dict[str, Any] = {
    "node_selector": {TAINT: "present"},
    "tolerations": ({"key": TAINT, "operator": "Exists", "effect": "NoSchedule"},),
}


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def train() -> str:
    return "trained"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled pipeline of one training task; it says nothing of GPUs."""

    @dsl.pipeline(name="one-training")
    def one_training() -> str:
        return train().output

    target = tmp_path_factory.mktemp("ir") / "ir.yaml"
    compiler.Compiler().compile(one_training, str(target))
    return target


@pytest.fixture(scope="module")
def gpu_node(cluster: Cluster) -> Iterator[str]:
    """A node that says it has one GPU, and that only tolerant pods may use."""
    name = str(cluster.get("nodes")["items"][0]["metadata"]["name"])
    paths = [f"/status/{kind}/nvidia.com~1gpu" for kind in ("capacity", "allocatable")]
    status = ("patch", "node", name, "--subresource=status", "--type=json", "-p")
    added = [{"op": "add", "path": path, "value": "1"} for path in paths]
    cluster.kubectl(*status, json.dumps(added))
    cluster.kubectl("label", "node", name, f"{TAINT}=present")
    cluster.kubectl("taint", "nodes", name, f"{TAINT}=present:NoSchedule")
    try:
        yield name
    finally:
        cluster.kubectl("taint", "nodes", name, f"{TAINT}-")
        cluster.kubectl("label", "node", name, f"{TAINT}-")
        removed = [{"op": "remove", "path": path} for path in paths]
        cluster.kubectl(*status, json.dumps(removed))


def test_a_training_runs_on_the_node_that_has_the_gpu_it_asks_for(
    site: PipelineSite, gpu_node: str, pipeline: Path
) -> None:
    run = site.start("gpu", {}, ir=pipeline, gpus=1, **ON_GPU_NODES)
    try:
        assert run.outputs() == {"Output": "trained"}
    finally:
        run.stop()
    (pod,) = run.pods()
    assert pod["spec"]["nodeName"] == gpu_node
    assert pod["spec"]["containers"][0]["resources"]["limits"][GPU] == "1"


@pytest.mark.parametrize(
    ("name", "placement", "reason"),
    [
        ("two", {"gpus": 2, **ON_GPU_NODES}, f"Insufficient {GPU}"),
        ("refused", {"gpus": 1}, "untolerated taint"),
    ],
)
def test_a_training_waits_while_no_node_may_give_it_what_it_asks_for(
    site: PipelineSite,
    gpu_node: str,
    pipeline: Path,
    name: str,
    placement: dict[str, Any],
    reason: str,
) -> None:
    run = site.start(name, {}, ir=pipeline, **placement)
    try:
        told = run.until("a verdict of the scheduler", lambda: unscheduled(run.pods()), 120)
    finally:
        run.stop()
    assert reason in told


def unscheduled(pods: list[dict[str, Any]]) -> str:
    """Why the scheduler has found no node for a pod; empty if it has, or has not looked."""
    for pod in pods:
        for condition in pod["status"].get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return str(condition["message"])
    return ""
