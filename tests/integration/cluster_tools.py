"""A cluster to try things on: kubectl, images, a namespace that ends with its test."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT.parent / "shared" / "cluster"
NAMESPACE_PREFIX = "sssflow-test-"
NODE_STATES = (
    '{range .items[*]}{.metadata.name}: {.status.conditions[?(@.status=="True")].type} '
    '{.spec.taints[*].key}{"\\n"}{end}'
)
SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
SYNC_PACKAGES = ("boto3", "numpy", "pydantic", "PyYAML", "rich", "typer")
"""What `sssflow serve sync` imports; the test's image holds these and no torch."""


@dataclass(frozen=True)
class Cluster:
    """One Kubernetes cluster, reached by kubectl with this environment."""

    environment: dict[str, str] = field(repr=False)

    def kubectl(
        self, *arguments: str, stdin: str | bytes = b"", check: bool = True, timeout_s: float = 300
    ) -> str:
        """Standard output of kubectl; AssertionError with its standard error if it fails."""
        return self.run("kubectl", *arguments, stdin=stdin, check=check, timeout_s=timeout_s)

    def run(
        self, *command: str, stdin: str | bytes = b"", check: bool = True, timeout_s: float = 300
    ) -> str:
        """Standard output of any command with the cluster's environment."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            command, input=data, env=self.environment, capture_output=True, timeout=timeout_s
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stderr.decode()}"
        return done.stdout.decode()

    def get(self, *what: str) -> Any:
        """What `kubectl get -o json` says."""
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    @contextlib.contextmanager
    def namespace(self) -> Iterator[str]:
        """A new namespace that enforces Pod Security `restricted`; gone afterwards."""
        name = f"{NAMESPACE_PREFIX}{uuid.uuid4().hex[:8]}"
        labels = {
            f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")
        }
        made = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels},
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(made))
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")

    @contextlib.contextmanager
    def port_forward(self, namespace: str, target: str, port: int) -> Iterator[int]:
        """A free local port that leads to `port` of `target`, for example service/name."""
        command = ["kubectl", "-n", namespace, "port-forward", target, f":{port}"]
        with tempfile.TemporaryFile() as log:
            forward = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
            try:
                yield _forwarded_port(forward, log.fileno())
            finally:
                forward.terminate()
                forward.wait(timeout=30)


def _forwarded_port(process: subprocess.Popen[bytes], log: int) -> int:
    for _ in range(100):
        text = os.pread(log, 10_000, 0).decode()
        found = re.search(r"127\.0\.0\.1:(\d+) ->", text)
        if found is not None:
            with socket.create_connection(("127.0.0.1", int(found[1])), timeout=10):
                return int(found[1])
        assert process.poll() is None, text
        time.sleep(0.1)
    raise AssertionError("kubectl port-forward opened no port")


def connect() -> Cluster | str:
    """The cluster of KUBECONFIG, else the kit's; else why there is none."""
    environment = dict(os.environ)
    if "KUBECONFIG" not in environment:
        if not (KIT / "cluster-up").is_file():
            return "no KUBECONFIG, and no cluster kit in shared/cluster"
        started = subprocess.run([str(KIT / "cluster-up")], capture_output=True, text=True)
        if started.returncode:
            return f"cluster-up failed: {started.stderr.strip()[-300:]}"
        for name, value in re.findall(r"(\w+)=(\S+)", started.stdout):
            environment[name] = value.replace("$PATH", environment["PATH"])
    if shutil.which("kubectl", path=environment["PATH"]) is None:
        return "no kubectl in PATH"
    return Cluster(environment)


def collect_logs(cluster: Cluster, folder: Path) -> str:
    """Write what all pods of the tests' namespaces said, and what became of them, below `folder`.

    A namespace's folder holds `pods.txt`, `events.txt`, and a file for each container. Returns what
    is seen from afar: how the pods stand, the last warnings, and what the nodes lack.
    """
    nodes = cluster.kubectl("get", "nodes", "-o", f"jsonpath={NODE_STATES}", check=False)
    seen = [nodes.strip()]
    names = cluster.kubectl("get", "namespaces", "-o", "name", check=False).split()
    for name in (n.removeprefix("namespace/") for n in names):
        if name.startswith(NAMESPACE_PREFIX):
            seen.append(_namespace_logs(cluster, name, folder / name))
    return "\n".join([*seen, str(folder)])


def _namespace_logs(cluster: Cluster, namespace: str, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)

    def write(file: str, *command: str) -> None:
        text = cluster.kubectl("-n", namespace, *command, check=False)
        (folder / file).write_text(text, "utf-8")

    by_time = "--sort-by=.metadata.creationTimestamp"
    write("pods.txt", "describe", "pods")
    write("events.txt", "get", "events", by_time)
    for pod in cluster.get("-n", namespace, "pods")["items"]:
        spec, name = pod["spec"], pod["metadata"]["name"]
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            told = container["name"]
            write(f"{name}.{told}.log", "logs", name, "-c", told, "--timestamps")
    pods = cluster.kubectl("-n", namespace, "get", "pods", check=False)
    warnings = cluster.kubectl(
        "-n", namespace, "get", "events", "--field-selector=type=Warning", by_time, check=False
    )
    return "\n".join([pods.strip(), *warnings.splitlines()[-6:]])


def load_image(cluster: Cluster, image: str) -> None:
    """Put an image of the local Docker into the kit's cluster or into kind's."""
    context = cluster.kubectl("config", "current-context").strip()
    if context.startswith("kind-"):
        name = context.removeprefix("kind-")
        cluster.run("kind", "load", "docker-image", image, "--name", name)
    elif (KIT / "cluster-load").is_file():
        cluster.run(str(KIT / "cluster-load"), image)


def image_values(reference: str) -> dict[str, str]:
    """An image as the charts' values name it: by digest where the reference has one."""
    name, at, digest = reference.partition("@")
    if at:
        return {"repository": name, "digest": digest}
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}


def build_sync_image(cluster: Cluster, folder: Path, tag: str) -> None:
    """An image with the command line and what `sssflow serve sync` needs, at installed versions."""
    shutil.copytree(ROOT / "src" / "sssflow", folder / "sssflow", dirs_exist_ok=True)
    shutil.copy(Path(__file__).with_name("Dockerfile"), folder / "Dockerfile")
    pins = sorted(f"{name}=={version}" for name, version in _closure(SYNC_PACKAGES).items())
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", "utf-8")
    cluster.run("docker", "build", "-q", "-t", tag, str(folder), timeout_s=600)


def _closure(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of packages and of all that they require on this platform."""
    found: dict[str, str] = {}
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on other platforms only
        found[name] = package.version
        wanted = [r for r in package.requires or () if "extra ==" not in r]
        todo += [re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0] for r in wanted]
    return found
