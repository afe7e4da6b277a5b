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
from tools.go_tool import GoTool
from tools.prepare_tests import JOBSET, TRAINER

DEFINED = {JOBSET: "jobsets.jobset.x-k8s.io", TRAINER: "trainjobs.trainer.kubeflow.org"}
RUNTIMES = "clustertrainingruntimes.trainer.kubeflow.org"
FREED = '{"metadata": {"finalizers": null}}'
OURS = {"sssflow/test": "trainer"}
START = 'until [ -x /program/run ]; do sleep 0.2; done; exec /program/run "$@"'
PUT = "cat > /program/part && chmod 755 /program/part && mv /program/part /program/run"


@contextmanager
def trainer(cluster: Cluster, image: str, folder: Path) -> Iterator[None]:
    """Trainer with the runtime torch-distributed; what it installs is gone afterwards.

    Where a cluster has Trainer or JobSet already, that one is used and stays.

    Args:
        cluster: Where it runs.
        image: Any image with a shell that the nodes have.
        folder: Scratch.

    Raises:
        ToolUnavailableError: It is not there and cannot be built.
    """
    wanted = [tool for tool, crd in DEFINED.items() if not _others(cluster, crd)]
    if TRAINER not in wanted:
        yield
        return
    programs = {tool: tool.path() for tool in wanted}
    sources = {tool: tool.source() for tool in DEFINED}
    shutil.copytree(sources[TRAINER] / "manifests", folder / "trainer")
    overlay = folder / "trainer" / "overlays" / "manager"
    for path in (overlay, overlay / "kustomization.yaml"):
        path.chmod(0o755)
    listed = (overlay / "kustomization.yaml").read_text("utf-8").splitlines()
    without = [line for line in listed if "third-party/jobset" not in line]
    (overlay / "kustomization.yaml").write_text("\n".join(without), "utf-8")
    folders = {JOBSET: sources[JOBSET] / "config" / "default", TRAINER: overlay}
    objects = {tool: _rendered(cluster, folders[tool], image) for tool in programs}
    _remove(cluster, objects)  # what a run left that was killed, or that could not clear up
    try:
        for tool, program in programs.items():
            given = yaml.safe_dump_all(objects[tool])
            cluster.kubectl("apply", "--server-side", "-f", "-", stdin=given)
            for item in objects[tool]:
                if item["kind"] == "Deployment":
                    _start(cluster, item, program)
        runtime = sources[TRAINER] / "manifests" / "base" / "runtimes" / "torch_distributed.yaml"
        _until_taken(cluster, runtime)
        yield
    finally:
        _remove(cluster, objects)


def _others(cluster: Cluster, crd: str) -> bool:
    """Whether somebody else defined this in the cluster."""
    named = f"--field-selector=metadata.name={crd}"
    (label,) = (f"{key}!={value}" for key, value in OURS.items())
    return bool(cluster.kubectl("get", "crd", named, "-l", label, "-o", "name"))


def _remove(cluster: Cluster, objects: dict[GoTool, list[dict[str, Any]]]) -> None:
    """Delete all of it, whatever of it is there and whether or not its programs still run.

    Trainer's manager puts a finalizer on a runtime that a TrainJob used, and takes it off only
    when the runtime is deleted. If the manager ends first, runtime and definition would stay.
    """
    given = yaml.safe_dump_all([item for tool in reversed(objects) for item in objects[tool]])
    gone = ("delete", "-f", "-", "--ignore-not-found")
    cluster.kubectl(*gone, "--wait=false", stdin=given)
    until = time.monotonic() + 60
    while names := cluster.kubectl("get", RUNTIMES, "-o", "name", check=False).split():
        assert time.monotonic() < until, f"{names} cannot be deleted"
        cluster.kubectl("patch", *names, "--type=merge", "-p", FREED, check=False)
        time.sleep(0.5)
    cluster.kubectl(*gone, "--timeout=120s", stdin=given)


def _rendered(cluster: Cluster, folder: Path, image: str) -> list[dict[str, Any]]:
    """The project's objects, with our image and a program that comes later."""
    objects = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(folder))))
    for item in objects:
        item["metadata"].setdefault("labels", {}).update(OURS)
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
