"""What Kubernetes is asked for when one training takes several machines: objects as plain data.

Every machine runs the same command. Where it stands comes in the variables that torchrun reads
(`PET_...`): Kubeflow Trainer sets them for a TrainJob, and `indexed_job` sets them itself. All see
one claim at one path; on it lie the dataset, the folder of the run and its checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sssflow.errors import UsageError
from sssflow.pipeline.config import NodesConfig
from sssflow.storage.digest import sha256_bytes

CONTAINER = "node"
"""Name of the container; Trainer's runtimes for torch call it so too."""

MADE_FROM = "sssflow/made-from"
"""Annotation: digest of the object, by which a later try knows it for its own."""

RUN_LABEL = {"sssflow/run": "true"}
"""Label of all pods of runs; the NetworkPolicy of the chart sssflow is for it."""

_GRACE_S = 60
"""From SIGTERM to SIGKILL: for the step in hand and a checkpoint."""

_KEPT_S = 3600
"""How long the cluster keeps a finished Job that nobody took away."""


@dataclass(frozen=True)
class Order:
    """One training on several machines.

    Attributes:
        name: Of the objects; the same for every try of the same training.
        namespace: Where they are made.
        config: The machines.
        command: What each of them runs.
        processes: On all machines together.
        launcher: Name of the pod that asks for them and owns them; empty: none.
    """

    name: str
    namespace: str
    config: NodesConfig
    command: tuple[str, ...]
    processes: int
    launcher: str = ""

    @property
    def per_node(self) -> int:
        """Processes, and so GPUs, of each machine."""
        return self.processes // self.config.nodes


def order(
    config: NodesConfig,
    namespace: str,
    command: Sequence[str],
    processes: int,
    folder: str,
    launcher: str = "",
) -> Order:
    """The order for the training into `folder`, which names it.

    Raises:
        UsageError: The machines cannot share the processes, or `folder` is not on the claim.
    """
    if processes % config.nodes:
        raise UsageError(
            "The machines cannot share the processes.",
            where="nodes",
            expected=f"a divisor of {processes} (processes of the training)",
            found=config.nodes,
        )
    if not PurePosixPath(folder).is_relative_to(config.claim_path):
        raise UsageError(
            "Several machines need a folder that all of them see.",
            where=folder,
            expected=f"a folder below {config.claim_path}",
            action="Mount the claim there, and put the store on it; for a store in S3 set TMPDIR "
            "to a folder on it.",
        )
    name = f"sssflow-train-{sha256_bytes(folder.encode())[:16]}"
    return Order(name, namespace, config, tuple(command), processes, launcher)


def train_job(wanted: Order) -> dict[str, Any]:
    """A TrainJob of Kubeflow Trainer 2.2 or newer (`runtimePatches`), as v1alpha1 has it."""
    config = wanted.config
    pod: dict[str, Any] = {
        "serviceAccountName": config.service_account,
        **_pull_secrets(config),
        "securityContext": _pod_security(),
        "volumes": _volumes(config),
        "nodeSelector": config.node_selector,
        "tolerations": _tolerations(config),
        "containers": [
            {"name": CONTAINER, "volumeMounts": _mounts(config), "securityContext": _security()}
        ],
    }
    job = {"name": CONTAINER, "template": {"spec": {"template": _pod_template(pod)}}}
    spec = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "ClusterTrainingRuntime",
            "name": config.runtime,
        },
        "trainer": {
            "image": config.image,
            "command": list(wanted.command),
            "env": _environment(),
            "numNodes": config.nodes,
            "numProcPerNode": wanted.per_node,
            "resourcesPerNode": _resources(wanted),
        },
        "runtimePatches": [
            {
                "manager": "sssflow/train",
                "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
            }
        ],
        "activeDeadlineSeconds": config.deadline_s,
    }
    return _object("trainer.kubeflow.org/v1alpha1", "TrainJob", wanted, spec)


def indexed_job(wanted: Order) -> dict[str, Any]:
    """An Indexed Job: pod number i is machine i; the first one that fails ends all.

    Their names are resolved by `headless_service`.
    """
    config = wanted.config
    place = [
        {"name": "PET_NNODES", "value": str(config.nodes)},
        {
            "name": "PET_NODE_RANK",
            "valueFrom": {
                "fieldRef": {
                    "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
                }
            },
        },
        {"name": "PET_MASTER_ADDR", "value": f"{wanted.name}-0.{wanted.name}"},
        {"name": "PET_MASTER_PORT", "value": str(config.port)},
    ]
    container = {
        "name": CONTAINER,
        "image": config.image,
        "command": list(wanted.command),
        "env": [*_environment(), *place],
        "resources": _resources(wanted),
        "volumeMounts": _mounts(config),
        "securityContext": _security(),
    }
    pod: dict[str, Any] = {
        "subdomain": wanted.name,
        "restartPolicy": "Never",
        "serviceAccountName": config.service_account,
        **_pull_secrets(config),
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": _GRACE_S,
        "securityContext": _pod_security(),
        "nodeSelector": config.node_selector,
        "tolerations": _tolerations(config),
        "volumes": _volumes(config),
        "containers": [container],
    }
    spec = {
        "completionMode": "Indexed",
        "completions": config.nodes,
        "parallelism": config.nodes,
        "backoffLimit": 0,
        "activeDeadlineSeconds": config.deadline_s,
        "ttlSecondsAfterFinished": _KEPT_S,
        "template": _pod_template(pod),
    }
    return _object("batch/v1", "Job", wanted, spec)


def headless_service(wanted: Order) -> dict[str, Any]:
    """The names of an Indexed Job's pods, also before they are ready."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": wanted.name},
        "ports": [{"name": "meet", "port": wanted.config.port}],
    }
    return _object("v1", "Service", wanted, spec)


def _object(api_version: str, kind: str, wanted: Order, spec: Mapping[str, Any]) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "sssflow", "app.kubernetes.io/component": "train"}
    if wanted.config.queue and kind != "Service":
        labels["kueue.x-k8s.io/queue-name"] = wanted.config.queue
    digest = sha256_bytes(json.dumps(spec, sort_keys=True).encode())
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": wanted.name,
            "namespace": wanted.namespace,
            "labels": labels,
            "annotations": {MADE_FROM: digest},
        },
        "spec": dict(spec),
    }


def _pod_template(pod: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"labels": dict(RUN_LABEL)},
        "spec": {name: value for name, value in pod.items() if value not in ({}, [])},
    }


def _environment() -> list[dict[str, str]]:
    """The root of the file system is read-only, and the user may have no home."""
    return [{"name": "HOME", "value": "/tmp"}]  # noqa: S108 - an emptyDir of the pod


def _volumes(config: NodesConfig) -> list[dict[str, Any]]:
    return [
        {"name": "claim", "persistentVolumeClaim": {"claimName": config.claim}},
        {
            "name": "shared-memory",
            "emptyDir": {"medium": "Memory", "sizeLimit": config.shared_memory},
        },
        {"name": "scratch", "emptyDir": {}},
    ]


def _mounts(config: NodesConfig) -> list[dict[str, Any]]:
    return [
        {"name": "claim", "mountPath": config.claim_path},
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - a mount point
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - a mount point
    ]


def _resources(wanted: Order) -> dict[str, Any]:
    config = wanted.config
    gpus = {config.gpu_type: str(wanted.per_node)} if config.gpu_type else {}
    return {
        "requests": {"cpu": config.cpu, "memory": config.memory, **gpus},
        "limits": {"cpu": config.cpu, "memory": config.memory, **gpus},
    }


def _pull_secrets(config: NodesConfig) -> dict[str, Any]:
    """Left out where none is named: an empty list would replace the service account's own."""
    return {"imagePullSecrets": [{"name": config.pull_secret}]} if config.pull_secret else {}


def _tolerations(config: NodesConfig) -> list[dict[str, str]]:
    return [
        {name: text for name, text in each.model_dump().items() if text}
        for each in config.tolerations
    ]


def _pod_security() -> dict[str, Any]:
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def _security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
