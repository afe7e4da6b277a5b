"""Objects of one namespace: made, read, followed and taken away by a task in a pod of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sssflow.errors import InternalError, UnavailableError, UsageError
from sssflow.pipeline.kube_calls import NoAnswerError, answering_once, call

_LOG_LINES = 40
_LOG_BYTES = 32 << 10
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PATHS = {
    "TrainJob": "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{}/trainjobs",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Service": "/api/v1/namespaces/{}/services",
    "Pod": "/api/v1/namespaces/{}/pods",
}

_NOT_ADMITTED = ("admission webhook", "exceeded quota", "violates PodSecurity")
"""How an answer 403 says that the right is there and the object is at fault."""

Object = dict[str, Any]


class Cluster:
    """The API of a cluster, as far as one training on several machines needs it.

    Args:
        api: An `ApiClient` of the package `kubernetes`.
        namespace: Of all objects.
    """

    def __init__(self, api: Any, namespace: str) -> None:
        self._api = answering_once(api)
        self.namespace = namespace

    @classmethod
    def of_this_pod(cls) -> Cluster:
        """The cluster that this process runs in, by its service account.

        Raises:
            UsageError: This process does not run in a pod with a service account.
        """
        from kubernetes import client, config

        try:
            config.load_incluster_config()
            return cls(client.ApiClient(), _NAMESPACE.read_text(encoding="utf-8").strip())
        except (config.ConfigException, OSError) as error:
            raise UsageError(
                "Several machines can only be asked for from within a cluster.",
                found=error,
                action="Run the pipeline on Kubernetes, or start `sssflow train` on each machine.",
            ) from None

    def has_train_jobs(self) -> bool:
        """Whether Kubeflow Trainer is installed."""
        return self._call("GET", "/apis/trainer.kubeflow.org/v1alpha1") is not None

    def find(self, kind: str, name: str) -> Object | None:
        """An object; None if there is none of this name."""
        return self._call("GET", f"{self._path(kind)}/{name}")

    def create(self, made: Object) -> Object:
        """Create an object; one that is there already is returned as it is.

        Raises:
            UsageError: The cluster does not know its kind, or does not admit it.
            UnavailableError: It was not made, as over a quota that changed in that moment.
        """
        kind, name = made["kind"], made["metadata"]["name"]
        found = self._call("POST", self._path(kind), body=made) or self.find(kind, name)
        if found is None:
            raise _refused("POST", self._path(kind), 409, f"{kind} {name} is not there after it")
        return found

    def hand_over(self, kind: str, name: str, owners: list[Object]) -> None:
        """Let an object go when its new owners go."""
        self._call(
            "PATCH", f"{self._path(kind)}/{name}", body={"metadata": {"ownerReferences": owners}}
        )

    def delete(self, kind: str, name: str) -> None:
        """Delete an object after all that belongs to it; returns before that is done."""
        self._call("DELETE", f"{self._path(kind)}/{name}", body={"propagationPolicy": "Foreground"})

    def pods(self, selector: str) -> list[Object]:
        """Pods with these labels, by name."""
        found = self._call("GET", self._path("Pod"), query={"labelSelector": selector})
        items = [] if found is None else found["items"]
        return sorted(items, key=lambda pod: str(pod["metadata"]["name"]))

    def log_tail(self, pod: str) -> str:
        """The last lines of a pod; empty if nothing is kept."""
        query = {"tailLines": str(_LOG_LINES), "limitBytes": str(_LOG_BYTES)}
        try:
            return self._text("GET", f"{self._path('Pod')}/{pod}/log", query=query) or ""
        except (InternalError, UnavailableError, UsageError):
            return ""

    def _path(self, kind: str) -> str:
        return _PATHS[kind].format(self.namespace)

    def _call(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None
    ) -> Object | None:
        text = self._text(method, path, query=query, body=body)
        return None if text is None else json.loads(text)

    def _text(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None
    ) -> str | None:
        """The answer; None if the object is not there (404), or there already (409)."""
        try:
            return call(self._api, method, path, query=query, body=body)
        except NoAnswerError as error:
            if error.status == 409 or (error.status == 404 and method != "POST"):
                return None
            raise _refused(method, path, error.status, error.found) from None


def _refused(
    method: str, path: str, status: int, found: str
) -> UsageError | InternalError | UnavailableError:
    where = f"{method} {path}"
    if status == 404:
        return UsageError(
            "The cluster does not know objects of this kind, or not this namespace.",
            where=where,
            found=found,
            action="A TrainJob needs Kubeflow Trainer: install it, or set pipeline.nodes.kind=job.",
        )
    if status == 403 and any(words in found for words in _NOT_ADMITTED):
        return UsageError(
            "The cluster does not admit an object.",
            where=where,
            found=found,
            action="Correct pipeline.nodes, or ask who administers the cluster.",
        )
    if status == 403:
        return UsageError(
            "The service account of this task may not do this.",
            where=where,
            found=found,
            action="Install the chart sssflow with rbac.training, for this service account.",
        )
    if status in (400, 422):
        return InternalError("The cluster refuses an object.", where=where, found=found)
    return UnavailableError(
        "The Kubernetes API cannot be used.",
        where=where,
        found=f"HTTP {status}: {found}" if status else found,
        action="Run the same command again.",
    )
