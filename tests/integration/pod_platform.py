"""From the settings of a compiled task to the pod that a KFP backend would make of them."""

from __future__ import annotations

from typing import Any

from sssflow.pipeline.ir import graphs

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def executor_of(ir: dict[str, Any], task: str) -> dict[str, Any]:
    """The container of a task in the first document of an IR."""
    found: dict[str, Any] = ir["deploymentSpec"]["executors"][f"exec-{task}"]["container"]
    return found


def retries_of(ir: dict[str, Any], task: str) -> int:
    """How many pods a task gets after the first."""
    for graph in graphs(ir):
        if task in graph["tasks"]:
            return int(graph["tasks"][task].get("retryPolicy", {}).get("maxRetryCount", 0))
    raise AssertionError(f"the pipeline has no task {task}")


def platform_of(platform: dict[str, Any], task: str) -> dict[str, Any]:
    """The Kubernetes settings of a task in the second document of an IR; empty without any."""
    kubernetes = platform.get("platforms", {}).get("kubernetes", {})
    found = kubernetes.get("deploymentSpec", {}).get("executors", {})
    settings: dict[str, Any] = found.get(f"exec-{task}", {})
    return settings


def resources(container: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Requests and limits of a compiled container; an accelerator becomes a limit alone."""
    asked = container.get("resources", {})
    made: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
    for kind in ("cpu", "memory"):
        for ours, theirs in (("requests", "Request"), ("limits", "Limit")):
            value = asked.get(f"resource{kind.title()}{theirs}")
            if value:
                made[ours][kind] = str(value)
    accelerator = asked.get("accelerator", {})
    name = accelerator.get("resourceType") or accelerator.get("type")
    if name:
        count = accelerator.get("resourceCount") or accelerator.get("count")
        made["limits"][name] = str(count)
    return made


def apply_platform(pod: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write the Kubernetes settings of a task into its pod template.

    Raises:
        AssertionError: A setting that is not known here would be left out.
    """
    for name, value in settings.items():
        handler = _HANDLERS.get(name)
        assert handler is not None, f"the platform setting {name} is not known here"
        handler(pod, value)


def _empty_dirs(pod: dict[str, Any], mounts: list[dict[str, Any]]) -> None:
    for mount in mounts:
        source = {"medium": mount.get("medium", ""), "sizeLimit": mount.get("sizeLimit")}
        add_volume(pod, mount["volumeName"], mount["mountPath"], {"emptyDir": source})


def _secrets(pod: dict[str, Any], secrets: list[dict[str, Any]]) -> None:
    for secret in secrets:
        name = secret.get("secretName") or secret["secretNameParameter"]["runtimeValue"]["constant"]
        for item in secret["keyToEnv"]:
            chosen = {"name": name, "key": item["secretKey"]}
            chosen["optional"] = secret.get("optional", False)
            pod["spec"]["containers"][0]["env"].append(
                {"name": item["envVar"], "valueFrom": {"secretKeyRef": chosen}}
            )


def _config_maps(pod: dict[str, Any], mounts: list[dict[str, Any]]) -> None:
    for mount in mounts:
        name = mount["configMapName"]
        source = {"configMap": {"name": name, "optional": mount.get("optional", False)}}
        add_volume(pod, name, mount["mountPath"], source)


def _tolerations(pod: dict[str, Any], tolerations: list[dict[str, Any]]) -> None:
    pod["spec"].setdefault("tolerations", []).extend(tolerations)


def _node_selector(pod: dict[str, Any], selector: dict[str, Any]) -> None:
    pod["spec"].setdefault("nodeSelector", {}).update(selector["labels"])


def _metadata(pod: dict[str, Any], metadata: dict[str, Any]) -> None:
    for kind in ("labels", "annotations"):
        pod["metadata"].setdefault(kind, {}).update(metadata.get(kind, {}))


def _security(pod: dict[str, Any], context: dict[str, Any]) -> None:
    pod["spec"]["containers"][0]["securityContext"].update(context)


_HANDLERS = {
    "emptyDirMounts": _empty_dirs,
    "secretAsEnv": _secrets,
    "configMapAsVolume": _config_maps,
    "tolerations": _tolerations,
    "nodeSelector": _node_selector,
    "podMetadata": _metadata,
    "securityContext": _security,
}


def add_volume(pod: dict[str, Any], name: str, path: str, source: dict[str, Any]) -> None:
    """Mount a volume into the only container."""
    spec = pod["spec"]
    spec["volumes"].append({"name": name, **source})
    spec["containers"][0]["volumeMounts"].append({"name": name, "mountPath": path})
