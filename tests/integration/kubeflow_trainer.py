"""Kubeflow Trainer and the JobSet controller that it needs, deployed as their projects do it.

Both are built from their Go modules, which hold their manifests too. Their images cannot be had
without a registry, so each program is put into a pod of an image that the nodes have.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from cluster_tools import Cluster
from tools.prepare_tests import JOBSET, TRAINER

CRD = "trainjobs.trainer.kubeflow.org"
GONE = ("--ignore-not-found", "--timeout=120s")
START = 'until [ -x /program/run ]; do sleep 0.2; done; exec /program/run "$@"'
PUT = "cat > /program/part && chmod 755 /program/part && mv /program/part /program/run"


@contextmanager
def trainer(cluster: Cluster, image: str, folder: Path) -> Iterator[None]:
    """Trainer with the runtime torch-distributed; what it installs is gone afterwards.

    Where a cluster has Trainer already, that one is used and stays.

    Args:
        cluster: Where it runs.
        image: Any image with a shell that the nodes have.
        folder: Scratch.

    Raises:
        ToolUnavailableError: It is not there and cannot be built.
    """
    if cluster.kubectl("get", "crd", CRD, "--ignore-not-found"):
        yield
        return
    programs = {tool: tool.path() for tool in (JOBSET, TRAINER)}
    sources = {tool: tool.source() for tool in programs}
    shutil.copytree(sources[TRAINER] / "manifests", folder / "trainer")
    overlay = folder / "trainer" / "overlays" / "manager"
    for path in (overlay, overlay / "kustomization.yaml"):
        path.chmod(0o755)
    listed = (overlay / "kustomization.yaml").read_text("utf-8").splitlines()
    without = [line for line in listed if "third-party/jobset" not in line]
    (overlay / "kustomization.yaml").write_text("\n".join(without), "utf-8")
    folders = {JOBSET: sources[JOBSET] / "config" / "default", TRAINER: overlay}
    runtime = sources[TRAINER] / "manifests" / "base" / "runtimes" / "torch_distributed.yaml"
    made: list[str] = []
    try:
        for tool, program in programs.items():
            objects = _rendered(cluster, folders[tool], image)
            made.append(yaml.safe_dump_all(objects))
            cluster.kubectl("apply", "--server-side", "-f", "-", stdin=made[-1])
            for item in objects:
                if item["kind"] == "Deployment":
                    _start(cluster, item, program)
        try:
            _until_taken(cluster, runtime)
            yield
        finally:
            _without_users(cluster, runtime)
    finally:
        for objects_yaml in reversed(made):
            cluster.kubectl("delete", "-f", "-", *GONE, stdin=objects_yaml)


def _without_users(cluster: Cluster, runtime: Path) -> None:
    """Take every TrainJob and the runtime away while Trainer's manager runs.

    The manager puts a finalizer on a runtime that a TrainJob used, and takes it off only when the
    runtime is deleted. Deleted together with its manager, the runtime and its definition stay for
    as long as the cluster does.
    """
    cluster.kubectl("delete", CRD, "--all", "--all-namespaces", *GONE)
    cluster.kubectl("delete", "-f", str(runtime), *GONE)


def _rendered(cluster: Cluster, folder: Path, image: str) -> list[dict[str, Any]]:
    """The project's objects, with our image and a program that comes later."""
    objects = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(folder))))
    for item in objects:
        if item["kind"] == "Deployment":
            pod = item["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            container |= {
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", START, "run"],
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
            }
            container["volumeMounts"].append({"name": "program", "mountPath": "/program"})
            pod["volumes"].append({"name": "program", "emptyDir": {}})
    return objects


def _start(cluster: Cluster, deployment: dict[str, Any], program: Path) -> None:
    """Give the Deployment's one pod its program, and wait until it is available."""
    name, namespace = (deployment["metadata"][key] for key in ("name", "namespace"))
    labels = deployment["spec"]["selector"]["matchLabels"]
    chosen = ",".join(f"{key}={value}" for key, value in labels.items())
    running = "jsonpath={.items[?(@.status.phase=='Running')].metadata.name}"
    until = time.monotonic() + 120
    while not (pod := cluster.kubectl("-n", namespace, "get", "pods", "-l", chosen, "-o", running)):
        assert time.monotonic() < until, f"no pod of {name} runs"
        time.sleep(0.5)
    into = ("exec", "-i", pod, "--", "sh", "-c", PUT)
    cluster.kubectl("-n", namespace, *into, stdin=program.read_bytes())
    wait = ("wait", f"deployment/{name}", "--for=condition=Available", "--timeout=240s")
    cluster.kubectl("-n", namespace, *wait)


def _until_taken(cluster: Cluster, runtime: Path) -> None:
    """Apply a runtime; its webhook answers only when its certificate has reached the API server."""
    until = time.monotonic() + 180
    while True:
        command = ("apply", "--server-side", "-f", str(runtime))
        if cluster.kubectl(*command, check=time.monotonic() > until):
            return
        time.sleep(2)
