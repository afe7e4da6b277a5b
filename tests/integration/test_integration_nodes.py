"""One training on two pods of a real cluster, with a pod killed on the way.

Once as an Indexed Job, and once as a TrainJob of a real Kubeflow Trainer.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from cluster_tools import Cluster
from kubeflow_trainer import trainer
from kubernetes import config as kubeconfig
from tools.go_tool import ToolUnavailableError

from sssflow.pipeline import cluster_objects
from sssflow.pipeline.config import NodesConfig
from sssflow.pipeline.node_jobs import Pace, run_on_nodes
from sssflow.pipeline.nodes import Order, indexed_job, order

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

Kind = Literal["trainjob", "job"]
MOUNT = "/mnt/sssflow"
SETTINGS = """
train:
  network: {base_channels: 4, levels: 3}
  preprocessing: {size_hw: [32, 32]}
  method: supervised
  steps: 200
  batch_labelled: 2
  eval_every: 200
  checkpoint_every_steps: 20
  device: cpu
  threads: 1
"""
PREPARE = f"""
set -e
cd {MOUNT}
cat > settings.yaml <<'END'{SETTINGS}END
sssflow data phantoms scans --set patients=4 --set 'hearts.slices=[3,3]'
sssflow data pack scans data
"""
TRAIN = (
    "sssflow", "train", f"{MOUNT}/data/manifest.json", f"{MOUNT}/run",
    "-c", f"{MOUNT}/settings.yaml", "--gpus", "2",
)  # fmt: skip


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace with a claim; all pods lie on the claim's node, so that any kind will do."""
    with cluster.namespace() as name:
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "shared", "namespace": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(claim))
        yield name


@pytest.fixture
def objects(cluster: Cluster, namespace: str) -> cluster_objects.Cluster:
    """The API, as the task of a training would use it."""
    path = cluster.environment["KUBECONFIG"]
    return cluster_objects.Cluster(kubeconfig.new_client_from_config(path), namespace)


def asked_for(namespace: str, image: str, command: tuple[str, ...], kind: Kind = "job") -> Order:
    config = NodesConfig(
        nodes=2,
        image=image,
        claim="shared",
        claim_path=MOUNT,
        kind=kind,
        gpu_type="",
        cpu="500m",
        memory="1500Mi",
        shared_memory="64Mi",
        attempts=4,
    )
    return order(config, namespace, command, config.nodes, f"{MOUNT}/{command[0]}")


def in_one_pod(cluster: Cluster, namespace: str, image: str, name: str, script: str) -> str:
    """What a shell script says that runs once in a pod with the claim."""
    made = indexed_job(asked_for(namespace, image, ("sh", "-c", script)))
    made["metadata"]["name"] = name
    made["spec"] |= {"completions": 1, "parallelism": 1}
    made["spec"]["template"]["spec"]["containers"][0]["resources"] = {}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(made))
    cluster.kubectl(
        "-n", namespace, "wait", f"job/{name}", "--for=condition=Complete", "--timeout=600s",
        timeout_s=620,
    )  # fmt: skip
    return cluster.kubectl("-n", namespace, "logs", f"job/{name}")


def kill_machine_1_after_a_checkpoint(cluster: Cluster, namespace: str, killed: list[str]) -> None:
    """Delete the second pod outright as soon as the first holds a checkpoint."""
    until = time.monotonic() + 600
    while time.monotonic() < until and not killed:
        pods = cluster.get("-n", namespace, "pods", "-l", "sssflow/run=true")["items"]
        names = sorted(p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running")
        if len(names) == 2:
            found = cluster.kubectl(
                "-n", namespace, "exec", names[0], "--", "sh", "-c",
                f"ls -d {MOUNT}/run/checkpoints/step_*", check=False,
            )  # fmt: skip
            if found.strip():
                cluster.kubectl(
                    "-n", namespace, "delete", "pod", names[1], "--grace-period=0", "--force"
                )
                killed.append(names[1])
        time.sleep(0.5)


@pytest.fixture
def kubeflow_trainer(cluster: Cluster, pipeline_image: str, tmp_path: Path) -> Iterator[None]:
    """A real Kubeflow Trainer in the cluster, or a skip with the reason."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(trainer(cluster, pipeline_image, tmp_path / "trainer"))
        except ToolUnavailableError as error:
            pytest.skip(str(error))
        yield


def train_with_a_kill(
    cluster: Cluster, objects: cluster_objects.Cluster, wanted: Order, pulse: Path
) -> None:
    """Train on two pods, kill one after a checkpoint, and look at what came out."""
    namespace, image = wanted.namespace, wanted.config.image
    in_one_pod(cluster, namespace, image, "prepare", PREPARE)
    killed: list[str] = []
    killer = threading.Thread(
        target=kill_machine_1_after_a_checkpoint, args=(cluster, namespace, killed), daemon=True
    )
    killer.start()
    run_on_nodes(objects, wanted, pulse, Pace(poll_s=1.0))
    killer.join(timeout=700)
    assert killed
    for kind in ("TrainJob", "Job", "Service"):
        assert objects.find(kind, wanted.name) is None
    record = json.loads(in_one_pod(cluster, namespace, image, "read", f"cat {MOUNT}/run/run.json"))
    assert record["steps"] == 200
    assert record["device"].startswith("2 processes, each on cpu")


def test_two_pods_train_one_student_and_go_on_after_one_was_killed(
    cluster: Cluster,
    namespace: str,
    objects: cluster_objects.Cluster,
    pipeline_image: str,
    tmp_path: Path,
) -> None:
    wanted = asked_for(namespace, pipeline_image, TRAIN)
    train_with_a_kill(cluster, objects, wanted, tmp_path / "pulse")


def test_a_train_job_of_kubeflow_trainer_does_the_same(
    kubeflow_trainer: None,
    cluster: Cluster,
    namespace: str,
    objects: cluster_objects.Cluster,
    pipeline_image: str,
    tmp_path: Path,
) -> None:
    wanted = asked_for(namespace, pipeline_image, TRAIN, kind="trainjob")
    train_with_a_kill(cluster, objects, wanted, tmp_path / "pulse")
