"""Who reaches whom under the charts' NetworkPolicies, where the cluster enforces them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cluster_study import serve_graphs
from cluster_tools import SECURITY, Cluster
from pipeline_site import TRITON_SERVICE, PipelineSite
from pod_platform import RESTRICTED

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PORT = 8080
GRPC = 8001
RUN = {"sssflow/run": "true"}
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
SETTLES_S = 20.0
DENY_ALL: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "deny-all"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
}


@dataclass(frozen=True)
class Pod:
    """A running pod that serves on `PORT`, and can try to reach others."""

    cluster: Cluster
    namespace: str
    name: str
    ip: str

    def reaches(self, host: str, port: int = PORT) -> bool:
        """Whether a connection comes about within three seconds."""
        tried = f'python3 -c "{CONNECT}" {host} {port} 2>/dev/null && echo reached || true'
        command = ("exec", self.name, "--", "sh", "-c", tried)
        return "reached" in self.cluster.kubectl("-n", self.namespace, *command)


def start_pod(
    cluster: Cluster, namespace: str, image: str, name: str, labels: dict[str, str]
) -> Pod:
    """A pod of the tasks' image that serves a page on `PORT`."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-m", "http.server", str(PORT), "--directory", "/tmp"],  # noqa: S108
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "128Mi"}},
    }
    spec = {
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "securityContext": SECURITY,
        "containers": [container],
    }
    meta = {"name": name, "namespace": namespace, "labels": labels}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(made))
    wait = ("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
    cluster.kubectl("-n", namespace, *wait)
    ip = str(cluster.get("-n", namespace, "pod", name)["status"]["podIP"])
    return Pod(cluster, namespace, name, ip)


def within(seconds: float, check: Callable[[], bool]) -> bool:
    """Whether `check()` becomes true in that time: policies take effect after a moment."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if check():
            return True
        time.sleep(1)
    return False


@pytest.fixture(scope="module")
def enforced(cluster: Cluster, pipeline_image: str) -> None:
    """Where a policy that denies all changes nothing: a skip, or a failure if it was promised."""
    with cluster.namespace() as namespace:
        served = start_pod(cluster, namespace, pipeline_image, "served", {})
        client = start_pod(cluster, namespace, pipeline_image, "client", {})
        assert within(SETTLES_S, lambda: client.reaches(served.ip))
        cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(DENY_ALL))
        denied = within(SETTLES_S, lambda: not client.reaches(served.ip))
    if not denied and os.environ.get("SSSFLOW_TEST_POLICIES") == "enforced":
        pytest.fail("SSSFLOW_TEST_POLICIES promises enforced policies, and they change nothing")
    if not denied:
        pytest.skip("the network of this cluster does not enforce NetworkPolicy")


@pytest.fixture
def stranger(cluster: Cluster, site: PipelineSite) -> Iterator[Pod]:
    """A pod of another namespace."""
    with cluster.namespace() as namespace:
        yield start_pod(cluster, namespace, site.image, "stranger", {})


def test_pods_of_runs_reach_each_other_and_services_and_nobody_else_reaches_them(
    enforced: None, site: PipelineSite, stranger: Pod
) -> None:
    served = start_pod(site.cluster, site.namespace, site.image, "one", RUN)
    mate = start_pod(site.cluster, site.namespace, site.image, "two", RUN)
    other = start_pod(site.cluster, site.namespace, site.image, "other", {})
    assert within(SETTLES_S, lambda: mate.reaches(served.ip))
    assert within(SETTLES_S, lambda: not other.reaches(served.ip))
    assert not stranger.reaches(served.ip)
    assert mate.reaches("kubernetes.default.svc", 443)
    assert served.reaches(other.ip)


def test_only_pods_of_its_namespace_reach_triton_and_triton_reaches_nobody(
    enforced: None, site: PipelineSite, triton_image: str, stranger: Pod
) -> None:
    serve_graphs(site, triton_image, {})
    service = f"{TRITON_SERVICE}.{site.namespace}.svc.cluster.local"
    client = start_pod(site.cluster, site.namespace, site.image, "client", {})
    assert within(SETTLES_S, lambda: client.reaches(service, GRPC))
    assert not stranger.reaches(service, GRPC)
    label = "app.kubernetes.io/instance=sam2"
    (server,) = site.cluster.get("-n", site.namespace, "pods", "-l", label)["items"]
    triton = Pod(site.cluster, site.namespace, str(server["metadata"]["name"]), "")
    assert not triton.reaches(client.ip)
