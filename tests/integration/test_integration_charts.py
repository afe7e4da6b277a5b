"""Both charts on a real cluster: installed, used, upgraded, refused, and gone without a trace."""

from __future__ import annotations

import io
import json
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cluster_tools import ROOT, Cluster, image_values

from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository, ServedModel
from sssflow.serving.client import TritonClient
from sssflow.serving.config import ClientConfig
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import reference

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
MODEL = """
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = triton.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(triton.InferenceResponse([triton.Tensor("y", 2 * x)]))
        return answers
"""
UNPACK = """
import sys, tarfile
archive = tarfile.open(fileobj=sys.stdin.buffer, mode="r|")
archive.extractall("/source", filter="data")
"""
SMALL = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
OWN_KINDS = (
    "deployments,replicasets,pods,services,endpointslices,secrets,configmaps,serviceaccounts,"
    "persistentvolumeclaims,networkpolicies,poddisruptionbudgets,horizontalpodautoscalers,"
    "roles,rolebindings,resourcequotas,limitranges"
)


@dataclass(frozen=True)
class Site:
    """A namespace with a model repository on a claim."""

    cluster: Cluster
    helm: Path
    namespace: str
    values: Path
    digest: str

    def release(self, verb: str, chart: str, *arguments: str) -> str:
        where = [str(self.helm), verb, "demo" if chart == "sam2-triton" else "runs"]
        return self.cluster.run(
            *where, str(ROOT / "charts" / chart), "-n", self.namespace, *arguments, timeout_s=600
        )

    def uninstall(self, release: str) -> None:
        self.cluster.run(
            str(self.helm), "uninstall", release, "-n", self.namespace, "--wait", timeout_s=300
        )

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, check=check)

    def objects(self) -> set[str]:
        names = self.kubectl("get", OWN_KINDS, "-o", "name", "--ignore-not-found")
        return set(names.split())


def _repository(folder: Path) -> str:
    """A repository of one model that doubles its input; returns its digest."""
    (folder / "echo" / "1").mkdir(parents=True)
    files = {"echo/config.pbtxt": CONFIG, "echo/1/model.py": MODEL}
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    model = ServedModel(
        name="echo",
        version=1,
        digest="0" * 64,
        inputs=(),
        outputs=(),
        files=tuple(reference(folder / name, base=folder) for name in files),
    )
    repository = ModelRepository(profile="cpu", models=(model,))
    save_contract(repository, folder / REPOSITORY_FILE)
    return repository.digest


def _pod(name: str, image: str, command: list[str]) -> dict[str, Any]:
    """A pod that mounts the claim `models` and holds to `restricted`."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "securityContext": SECURITY,
        "resources": SMALL,
        "volumeMounts": [{"name": "models", "mountPath": "/source"}],
    }
    security = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "securityContext": security,
        "containers": [container],
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def _fill_claim(cluster: Cluster, namespace: str, image: str, folder: Path) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "100Mi"}},
        },
    }
    pod = _pod("filler", image, ["sleep", "600"])
    for made in (claim, pod):
        cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(made))
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/filler", "--timeout=90s")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, arcname="models")
    cluster.kubectl(
        "-n",
        namespace,
        "exec",
        "-i",
        "filler",
        "--",
        "python3",
        "-c",
        UNPACK,
        stdin=packed.getvalue(),
    )
    cluster.kubectl("-n", namespace, "delete", "pod", "filler")


@pytest.fixture(scope="module")
def site(
    cluster: Cluster,
    helm: Path,
    triton_image: str,
    sync_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    digest = _repository(folder / "repository")
    values = {
        "image": image_values(triton_image),
        "sync": {"image": image_values(sync_image), "resources": SMALL},
        "models": ["echo"],
        "readinessModel": "echo",
        "modelRepository": {"path": "models", "digest": digest, "pvc": {"claimName": "models"}},
        "resources": {**SMALL, "requests": {"cpu": "100m", "memory": "256Mi"}},
        "server": {"responseCacheMiB": 16, "drainSeconds": 1, "exitTimeoutSeconds": 5},
        "probes": {"startupSeconds": 120, "periodSeconds": 2},
    }
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    with cluster.namespace() as namespace:
        _fill_claim(cluster, namespace, sync_image, folder / "repository")
        yield Site(cluster, helm, namespace, file, digest)


def _ask(url: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _admin_key(site: Site) -> str:
    template = '{{index .data "key" | base64decode}}'
    return site.kubectl("get", "secret", "demo-sam2-triton-admin", "-o", f"go-template={template}")


def _serves(site: Site) -> None:
    """The model answers by gRPC; HTTP and the admin APIs answer to the key alone."""
    with site.cluster.port_forward(site.namespace, "service/demo-sam2-triton", 8000) as port:
        base = f"http://127.0.0.1:{port}/v2"
        assert _ask(f"{base}/models/echo/ready")[0] == 200
        tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, -2.0]}
        infer = "models/echo/infer"
        for path in ("repository/index", "repository/models/echo/unload", infer):
            assert _ask(f"{base}/{path}", {"inputs": [tensor]})[0] == 403
        key = {"sssflow-admin-key": _admin_key(site)}
        status, answer = _ask(f"{base}/{infer}", {"inputs": [tensor]}, **key)
        assert status == 200
        assert answer["outputs"][0]["data"] == [3.0, -4.0]
        status, index = _ask(f"{base}/repository/index", {}, **key)
        assert status == 200
        assert [model["state"] for model in index] == ["READY"]
    with (
        site.cluster.port_forward(site.namespace, "service/demo-sam2-triton", 8001) as port,
        TritonClient(ClientConfig(url=f"grpc://127.0.0.1:{port}")) as client,
    ):
        answer = client.infer("echo", {"x": np.array([1.5, -2.0], np.float32)}, ["y"])
    assert answer["y"].tolist() == [3.0, -4.0]


def test_triton_is_installed_serves_is_upgraded_and_leaves_nothing(site: Site) -> None:
    before = site.objects()
    site.release("install", "sam2-triton", "-f", str(site.values), "--wait", "--timeout=300s")
    _serves(site)
    key, first = _admin_key(site), site.kubectl("get", "pods", "-o", "name")
    more = ("--set", "server.verbosity=1", "--set", "replicas=2")
    values = ("-f", str(site.values), "--wait", "--timeout=300s")
    site.release("upgrade", "sam2-triton", *values, *more)
    assert _admin_key(site) == key
    site.kubectl("wait", "--for=delete", *first.split(), "--timeout=60s")
    _serves(site)
    site.uninstall("demo")
    site.kubectl("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/instance=demo")
    assert site.objects() - before == set()


def test_a_server_never_starts_on_another_repository(site: Site) -> None:
    wrong = f"modelRepository.digest={'f' * 64}"
    site.release("install", "sam2-triton", "-f", str(site.values), "--set", wrong)
    try:
        name, log, until = "app.kubernetes.io/instance=demo", "", time.monotonic() + 120
        # There is no pod at first, and no log of what ended while the next container starts.
        while "Another model repository lies here" not in log:
            assert time.monotonic() < until, log
            time.sleep(1)
            log = site.kubectl("logs", "-l", name, "-c", "sync", "--previous", check=False)
        (pod,) = site.cluster.get("-n", site.namespace, "pods", "-l", name)["items"]
        assert pod["status"]["initContainerStatuses"][0]["restartCount"] >= 1
        assert not pod["status"]["initContainerStatuses"][0]["ready"]
    finally:
        site.uninstall("demo")


def _may(site: Site, verb: str, group: str, resource: str, name: str) -> bool:
    """What the API server says the chart's service account may do."""
    asked = {"verb": verb, "group": group, "resource": resource, "name": name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{site.namespace}:runs-sssflow",
            "resourceAttributes": {**asked, "namespace": site.namespace},
        },
    }
    command = ("create", "-f", "-", "-o", "json")
    answer = json.loads(site.cluster.kubectl(*command, stdin=json.dumps(review)))
    return bool(answer["status"]["allowed"])


def test_a_namespace_is_prepared_with_exactly_its_rights_and_leaves_nothing(site: Site) -> None:
    before = site.objects()
    values = ROOT / "charts" / "sssflow" / "ci" / "full-values.yaml"
    without = ("--set", "kueue.enabled=false", "--set", "quota.enabled=false")
    site.release("install", "sssflow", "-f", str(values), *without)
    expected = {
        ("create", "batch", "jobs", ""): True,
        ("create", "trainer.kubeflow.org", "trainjobs", ""): True,
        ("get", "", "secrets", "s3-credentials"): True,
        ("get", "", "secrets", "other"): False,
        ("list", "", "secrets", ""): False,
        ("create", "", "pods", ""): False,
        ("create", "rbac.authorization.k8s.io", "rolebindings", ""): False,
    }
    try:
        assert {right: _may(site, *right) for right in expected} == expected
    finally:
        site.uninstall("runs")
    site.kubectl(
        "wait", "--for=delete", "pvc/runs-sssflow-checkpoints", "--timeout=60s", check=False
    )
    assert site.objects() - before == set()


def test_a_claim_that_is_to_be_kept_is_kept(site: Site) -> None:
    kept = ("--set", "checkpoints.create=true", "--set", "checkpoints.onUninstall=keep")
    site.release("install", "sssflow", *kept)
    site.uninstall("runs")
    claim = site.cluster.get("-n", site.namespace, "pvc", "runs-sssflow-checkpoints")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    site.kubectl("delete", "pvc", "runs-sssflow-checkpoints")


def test_the_server_accepts_every_profile_in_a_restricted_namespace(site: Site) -> None:
    overlays = ("values-cpu.yaml", "values-gpu.yaml", "ci/s3-values.yaml")
    for overlay in overlays:
        chart = ROOT / "charts" / "sam2-triton"
        text = site.cluster.run(
            str(site.helm),
            "template",
            "other",
            str(chart),
            "-n",
            site.namespace,
            "--kube-version",
            "1.34.0",
            "-f",
            str(chart / overlay),
        )
        command = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
        done = site.cluster.kubectl("-n", site.namespace, *command, stdin=text)
        assert done.count("(server dry run)") == 6
