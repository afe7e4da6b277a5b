"""An S3 server that pods and the tests reach: a given one, or a pod that runs ours."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_tools import SECURITY, Cluster
from pod_platform import RESTRICTED

PORT = 7070
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
REGION = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
PROGRAM = "/data/versitygw"
SERVE = (
    f"mkdir -p /data/buckets /data/meta; until [ -x {PROGRAM} ]; do sleep 0.2; done; "
    f"exec {PROGRAM} --quiet --port :{PORT} --region us-east-1 "
    "posix --sidecar /data/meta /data/buckets"
)


@dataclass(frozen=True)
class ObjectStore:
    """An S3 server and its keys.

    Attributes:
        pod_endpoint: Its address for pods.
        environment: Variables with which boto3 here reaches it.
    """

    pod_endpoint: str
    environment: dict[str, str] = field(repr=False)

    @property
    def keys(self) -> dict[str, str]:
        """What the pods' Secret holds."""
        return {name: self.environment[name] for name in KEYS}


def given_store() -> ObjectStore | None:
    """The server that SSSFLOW_TEST_S3_ENDPOINT names, with the keys of the environment."""
    named = os.environ.get("SSSFLOW_TEST_S3_ENDPOINT")
    if not named:
        return None
    found = {name: os.environ[name] for name in KEYS}
    return ObjectStore(named, {**found, "AWS_ENDPOINT_URL": named, **REGION})


@contextmanager
def own_store(cluster: Cluster, image: str, program: Path) -> Iterator[ObjectStore]:
    """A server in a namespace of its own; its objects go with it.

    Args:
        cluster: Where it runs.
        image: Any image with a shell that the nodes have.
        program: The server, a static binary for the nodes' kind of machine.
    """
    keys = dict(zip(KEYS, (secrets.token_hex(8), secrets.token_hex(20)), strict=True))
    with cluster.namespace() as namespace:
        for made in _objects(image, keys):
            cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(made))
        running = "--for=jsonpath={.status.containerStatuses[0].state.running}"
        cluster.kubectl("-n", namespace, "wait", running, "pod/s3", "--timeout=120s")
        put = f"cat > {PROGRAM}.part && chmod 755 {PROGRAM}.part && mv {PROGRAM}.part {PROGRAM}"
        into = ("exec", "-i", "s3", "--", "sh", "-c", put)
        cluster.kubectl("-n", namespace, *into, stdin=program.read_bytes())
        # kubectl ends a forwarding at the first connection that the pod refuses.
        cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/s3", "--timeout=60s")
        inside = f"http://s3.{namespace}.svc.cluster.local:{PORT}"
        with cluster.port_forward(namespace, "service/s3", PORT) as port:
            here = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", **REGION}
            yield ObjectStore(inside, {**keys, **here})


def _objects(image: str, keys: dict[str, str]) -> list[dict[str, Any]]:
    """Secret, Service and pod of a server."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "stringData": {"ROOT_ACCESS_KEY": keys[KEYS[0]], "ROOT_SECRET_KEY": keys[KEYS[1]]},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s3"},
        "spec": {"selector": {"app": "s3"}, "ports": [{"port": PORT, "targetPort": PORT}]},
    }
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", SERVE],
        "envFrom": [{"secretRef": {"name": "keys"}}],
        "securityContext": RESTRICTED,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "s3", "labels": {"app": "s3"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": SECURITY,
            "containers": [container],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }
    return [secret, service, pod]
