"""Pod Security `restricted`, and what we ask beyond it, as a function of a pod's specification.

Source: Kubernetes documentation, Pod Security Standards, policy v1.34.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def violations(spec: dict[str, Any]) -> list[str]:
    """Rules of `restricted` that a pod breaks, as readable lines."""
    return [*_of_pod(spec), *(line for c in containers(spec) for line in _of_container(c, spec))]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Init and main containers."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def hardening_gaps(spec: dict[str, Any]) -> list[str]:
    """What `restricted` does not ask for and we do."""
    gaps = []
    if spec.get("automountServiceAccountToken") is not False:
        gaps.append("the service account's token is mounted")
    for container in containers(spec):
        name, resources = container["name"], container.get("resources", {})
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            gaps.append(f"{name}: the root file system can be written")
        for part in ("requests", "limits"):
            for resource in ("cpu", "memory"):
                if resource not in resources.get(part, {}):
                    gaps.append(f"{name}: no {part} of {resource}")
        _, _, tag = container["image"].rpartition(":")
        if "@sha256:" not in container["image"] and ("/" in tag or tag == "latest"):
            gaps.append(f"{name}: the image has no fixed version")
    return gaps


def _of_pod(spec: dict[str, Any]) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield key
    for volume in spec.get("volumes", []):
        for kind in set(volume) - {"name"} - VOLUMES:
            yield f"volume of type {kind}"
    if spec.get("securityContext", {}).get("runAsUser") == 0:
        yield "the pod runs as root"


def _of_container(container: dict[str, Any], spec: dict[str, Any]) -> Iterator[str]:
    name, own = container["name"], container.get("securityContext", {})
    pod = spec.get("securityContext", {})
    if own.get("privileged"):
        yield f"{name}: privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{name}: capabilities are not dropped"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"{name}: capabilities are added"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield f"{name}: runAsNonRoot is not true"
    if own.get("runAsUser") == 0:
        yield f"{name}: runs as root"
    seccomp = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
    if seccomp not in ("RuntimeDefault", "Localhost"):
        yield f"{name}: no seccomp profile"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield f"{name}: a host port"
