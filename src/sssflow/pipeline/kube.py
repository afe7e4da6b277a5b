"""What the Kubernetes API tells about a namespace and a run's pods. Nothing is changed here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sssflow.errors import SssflowError, UnavailableError, UsageError
from sssflow.pipeline.ir import require_kfp
from sssflow.pipeline.kube_calls import NoAnswerError, answering_once, call

_LOG_BYTES = 64 << 10
_LOG_LINES = 60
_EXIT = re.compile(r"\(exit (64|65|69|70|75)\): ")
_NODE = "workflows.argoproj.io/node-name"
"""Annotation of Argo: which task of the run a pod is a try of, with the number of the try."""
_TRY = re.compile(r"\(\d+\)")
_STUCK = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "CrashLoopBackOff",
    }
)


@dataclass(frozen=True)
class PodTrouble:
    """Why a pod does not start, or how it ended."""

    pod: str
    reason: str


class Kube:
    """A namespace of a cluster, through the client that kfp depends on.

    Args:
        namespace: Where pods of runs are; empty: the namespace of the context.
        context: Name in the kubeconfig; None: the current one.
        kubeconfig: File, or several with `:` between them; None: the usual one.

    Raises:
        UsageError: There is no usable kubeconfig.
    """

    def __init__(
        self, namespace: str = "", *, context: str | None = None, kubeconfig: str | None = None
    ) -> None:
        require_kfp()
        import yaml
        from kubernetes import config

        wrong = (OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError)
        try:
            self._api = answering_once(config.new_client_from_config(kubeconfig, context=context))
            _, current = config.list_kube_config_contexts(kubeconfig)
        except (config.ConfigException, *wrong) as error:
            raise UsageError(
                "There is no usable kubeconfig.",
                where=kubeconfig or "~/.kube/config",
                found=str(error)[:300],
                action="Set KUBECONFIG or --kubeconfig, and name a context with --context.",
            ) from None
        told = "" if context else str(current.get("context", {}).get("namespace", ""))
        self.namespace = namespace or told or "default"

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """An object of the API, by its path.

        Raises:
            LookupError: It does not exist.
            PermissionError: It may not be read with this kubeconfig.
            UnavailableError: The API did not answer.
        """
        return self._object(self._call("GET", path, query=query))

    def allowed(self, account: str, group: str, resource: str, verb: str) -> bool:
        """Whether a service account of the namespace may do this here."""
        attributes = {
            "namespace": self.namespace,
            "group": group,
            "resource": resource.partition("/")[0],
            "subresource": resource.partition("/")[2],
            "verb": verb,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{self.namespace}:{account}",
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}"],
                "resourceAttributes": {name: text for name, text in attributes.items() if text},
            },
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        answer = self._object(self._call("POST", path, body=review))
        return bool(answer["status"]["allowed"])

    def pods_of(self, run_id: str) -> list[dict[str, Any]]:
        """Pods of a run, oldest first."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        found = self.get(path, labelSelector=f"pipeline/runid={run_id}")["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def log_tail(self, pod: str) -> str:
        """The last lines of what a task said; empty if nothing is kept."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        query = {
            "container": "main",
            "tailLines": str(_LOG_LINES),
            "limitBytes": str(_LOG_BYTES),
        }
        try:
            return self._call("GET", path, query=query)
        except (LookupError, PermissionError, SssflowError):
            return ""

    def _object(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):  # a login page, or a proxy's
            said = f"a page that begins with {text.strip()[:40]!r}"
            raise _unreachable(self._api.configuration.host, said)
        return found

    def _call(
        self, method: str, path: str, query: dict[str, str] | None = None, body: Any = None
    ) -> str:
        try:
            return call(self._api, method, path, query=query, body=body)
        except NoAnswerError as error:
            if error.status == 404:
                raise LookupError(path) from None
            if error.status in (400, 401, 403):
                raise PermissionError(f"HTTP {error.status}: {path}") from None
            found = f"HTTP {error.status}" if error.status else error.found
            raise _unreachable(self._api.configuration.host, found) from None


def _unreachable(host: str, found: str) -> UnavailableError:
    return UnavailableError(
        "The Kubernetes API cannot be used.",
        where=host,
        found=found,
        action="Check the kubeconfig and the network, then run the same command again.",
    )


def troubles(pods: Sequence[dict[str, Any]]) -> list[PodTrouble]:
    """Pods that cannot start: nothing fits them, or their image or settings are not there."""
    found = []
    for pod in pods:
        name, status = str(pod["metadata"]["name"]), pod.get("status", {})
        for condition in status.get("conditions", ()):
            if condition.get("reason") == "Unschedulable":
                found.append(PodTrouble(name, f"Unschedulable: {condition.get('message', '')}"))
        containers = [
            *status.get("initContainerStatuses", ()),
            *status.get("containerStatuses", ()),
        ]
        for container in containers:
            waiting = container.get("state", {}).get("waiting", {})
            if waiting.get("reason") in _STUCK:
                text = f"{waiting['reason']}: {waiting.get('message', '')}"
                found.append(PodTrouble(name, text))
    return found


def failed_pods(pods: list[dict[str, Any]]) -> list[str]:
    """Names of the failed pods of tasks that no other try has done, of each its last try first.

    Args:
        pods: Oldest first.
    """
    tries: dict[str, list[tuple[str, str]]] = {}
    for pod in pods:
        name, phase = str(pod["metadata"]["name"]), str(pod.get("status", {}).get("phase"))
        node = str(pod["metadata"].get("annotations", {}).get(_NODE, name))
        tries.setdefault(_TRY.sub("", node), []).append((name, phase))
    open_tasks = [t for t in tries.values() if all(phase != "Succeeded" for _, phase in t)]
    return [name for task in open_tasks for name, phase in task[::-1] if phase == "Failed"]


def reason_in(log: str) -> tuple[int, str] | None:
    """Exit code and message of a task that said why it failed; None if it did not."""
    found = list(_EXIT.finditer(log))
    if not found:
        return None
    lines = log[found[-1].end() :].splitlines()
    # The message is one sentence and indented facts; what follows is not ours.
    facts = lines[:1]
    for line in lines[1:]:
        if not line.startswith("  "):
            break
        facts.append(line)
    return int(found[-1][1]), "\n".join(facts)
