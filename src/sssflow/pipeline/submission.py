"""From the compiled pipeline and the settings of one submission to what KFP is asked to run.

The compiled file stays as it is: where and with what tasks run (image, GPUs, nodes, secrets) is
written into the copy that travels with the request. They are no parameters of the pipeline because
kfp 2.17 compiles a parameter for an accelerator inside a loop to an input that the loop never gets.
What decides the results (experiment, scans with their digest, store) are parameters, and the image
goes by digest: all of it is part of the key of KFP's cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sssflow.errors import UsageError
from sssflow.experiment import ExperimentConfig
from sssflow.pipeline.config import NodesConfig
from sssflow.pipeline.ir import graphs
from sssflow.pipeline.nodes import RUN_LABEL
from sssflow.storage.digest import sha256_bytes

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""What the Secret of the object store holds, and the variables of the pods."""

TOKEN = "AWS_SESSION_TOKEN"  # noqa: S105 - the name of a variable
"""What the same Secret holds beside them if the keys are temporary."""

_TRAINS = frozenset({"train"})
_INFERS = frozenset({"adapt-sam2", "generate-prompts", "sam2-inference", "evaluate"})
_IMAGE = re.compile(r"[a-z0-9][\w.\-/:]*@sha256:[0-9a-f]{64}", re.ASCII)
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[KMGT]i?)?", re.ASCII)
_TAINT = re.compile(r"(?P<key>[^=:\s]+)(=(?P<value>[^=:\s]*))?(:(?P<effect>\w+))?", re.ASCII)
_CA = re.compile(
    r"(?P<config_map>[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(/(?P<key>[-.\w]+))?", re.ASCII
)
_CA_FOLDER = "/etc/sssflow-s3-ca"
_KEY_LENGTH = 24
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def parse_toleration(text: str) -> dict[str, str]:
    """A toleration from a taint as kubectl writes it: `KEY[=VALUE][:EFFECT]`.

    Raises:
        UsageError: Not of that form.
    """
    found = _TAINT.fullmatch(text)
    effect = found["effect"] if found else None
    if found is None or (effect is not None and effect not in _EFFECTS):
        raise UsageError(
            "Not a toleration.",
            where=text,
            expected=f"KEY, KEY:EFFECT or KEY=VALUE:EFFECT with {' | '.join(_EFFECTS)}",
        )
    made = {"key": found["key"], "operator": "Exists"}
    if found["value"] is not None:
        made |= {"operator": "Equal", "value": found["value"]}
    return made | ({"effect": effect} if effect else {})


def parse_label(text: str) -> tuple[str, str]:
    """A label of nodes from `KEY=VALUE`.

    Raises:
        UsageError: Not of that form.
    """
    key, equals, value = text.partition("=")
    if not key or not equals or "=" in value:
        raise UsageError("Not a label of nodes.", where=text, expected="KEY=VALUE")
    return key, value


@dataclass(frozen=True)
class Certificates:
    """The entry of a ConfigMap with the certificates that the object store is checked against."""

    config_map: str
    key: str


def parse_certificates(text: str) -> Certificates | None:
    """From `CONFIGMAP[/KEY]`, where the key is ca.crt if none is named; None from nothing.

    Raises:
        UsageError: Not of that form. KFP calls the volume in the pod as the ConfigMap, so that
            the name must do for both, and holds no dot.
    """
    if not text:
        return None
    found = _CA.fullmatch(text)
    if found is None:
        raise UsageError(
            "Not a ConfigMap of certificates.",
            where=text,
            expected="CONFIGMAP or CONFIGMAP/KEY; of a-z, 0-9 and - in the name of the ConfigMap",
            action="Copy one of another name: KFP calls a volume of the pod as the ConfigMap.",
        )
    return Certificates(found["config_map"], found["key"] or "ca.crt")


def require_digest(image: str) -> str:
    """The image, if it is named by digest.

    Raises:
        UsageError: It is named by a tag, which may mean another image tomorrow.
    """
    if not _IMAGE.fullmatch(image):
        raise UsageError(
            "The image must be named by its digest.",
            where=image or "--image",
            expected="NAME@sha256:<64 hexadecimal digits>",
            action="`docker image inspect --format '{{index .RepoDigests 0}}' NAME:TAG` tells it; "
            "a tag can be moved, and KFP's cache would not notice.",
        )
    return image


@dataclass(frozen=True)
class Placement:
    """Where and with what the tasks of one submission run.

    Attributes:
        image: Image of every task, by digest.
        gpus: GPUs of each training; each other task that computes gets one. 0: none.
        gpu_type: Name of the resource.
        on_machines: Section to the machines of its own that its training runs on; the task only
            follows it, gets no GPU, and works on the claim that they share.
        sam_on_gpu: Whether the task of SAM-2 gets one of them; not if Triton computes for it.
        node_selector: Labels of the nodes for tasks with GPUs; without GPUs: for all tasks.
        tolerations: Of the same tasks.
        secret: Secret with `KEYS`, and `TOKEN` if they are temporary; empty: the pods' role opens
            the store.
        certificates: What the store is checked against; None: what every machine trusts.
        environment: Further variables of every task; none of them secret.
        pull_secret: Secret for pulling the image; empty: none.
        cpu: Request of every task that computes, as Kubernetes writes it; empty: none.
        memory: Request and limit of the same tasks; empty: none.
        retries: Further tries of a task that failed or lost its pod.
        cached: Whether KFP may hand on results of earlier runs.
    """

    image: str
    gpus: int = 0
    gpu_type: str = "nvidia.com/gpu"
    on_machines: Mapping[str, NodesConfig] = field(default_factory=dict)
    sam_on_gpu: bool = True
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    secret: str = ""
    certificates: Certificates | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    pull_secret: str = ""
    cpu: str = ""
    memory: str = ""
    retries: int = 2
    cached: bool = True

    def __post_init__(self) -> None:
        for image in (self.image, *(machines.image for machines in self.on_machines.values())):
            require_digest(image)
        for name, text in (("cpu", self.cpu), ("memory", self.memory)):
            if text and not _QUANTITY.fullmatch(text):
                raise UsageError(
                    "Not a quantity.", where=name, expected="for example 2, 500m or 8Gi", found=text
                )

    def gpus_of(self, component: str, section: str = "") -> int:
        """GPUs of a task of this component; `section` is that of a training."""
        if component in _TRAINS:
            return 0 if section in self.on_machines else self.gpus
        if component not in _INFERS or (component == "sam2-inference" and not self.sam_on_gpu):
            return 0
        return min(1, self.gpus)


def spec_for(ir_path: Path, placement: Placement) -> dict[str, Any]:
    """`pipeline_spec` of the request: the compiled pipeline with its placement.

    Args:
        ir_path: The compiled pipeline; only read.
        placement: Where and with what it runs.

    Returns:
        `{"pipeline_spec": ..., "platform_spec": ...}`, the form in which kfp.Client sends a
        pipeline that has settings for Kubernetes.
    """
    documents = list(yaml.safe_load_all(ir_path.read_text(encoding="utf-8")))
    ir: dict[str, Any] = documents[0]
    platform: dict[str, Any] = documents[1] if len(documents) > 1 else {}
    kubernetes = platform.setdefault("platforms", {}).setdefault("kubernetes", {})
    settings = kubernetes.setdefault("deploymentSpec", {}).setdefault("executors", {})
    for component, section, label in _executors(ir):
        gpus = placement.gpus_of(component, section)
        container = ir["deploymentSpec"]["executors"][label]["container"]
        _place_container(container, component, gpus, placement)
        _place_pod(settings.setdefault(label, {}), gpus, placement)
        if section in placement.on_machines:
            _share_claim(container, settings[label], placement.on_machines[section])
    for task in _executed_tasks(ir):
        task["cachingOptions"] = {"enableCache": True} if placement.cached else {}
        if placement.retries:
            task["retryPolicy"] = {
                "maxRetryCount": placement.retries,
                "backoffDuration": "10s",
                "backoffFactor": 2.0,
                "backoffMaxDuration": "120s",
            }
    return {"pipeline_spec": ir, "platform_spec": platform}


def parameters_for(
    experiment: ExperimentConfig, image: str, store: str, source: str = "", source_digest: str = ""
) -> dict[str, str]:
    """Parameters of a run: all that decides its results, and a key made of it and of the image.

    Raises:
        UsageError: The experiment holds a secret, which everybody who sees the run would read.
    """
    if experiment.sam.triton.admin_key is not None:
        raise UsageError(
            "The settings of a run hold a secret.",
            where="sam.triton.admin_key",
            expected="null: KFP shows parameters to all who see the run",
            action="Leave it out: SAM-2's tasks ask nothing of the server that needs it.",
        )
    made = {
        "config_json": experiment.model_dump_json(),
        "store_uri": store,
        "source": source,
        "source_digest": source_digest,
    }
    facts = json.dumps({**made, "image": image}, sort_keys=True)
    return {**made, "run_key": sha256_bytes(facts.encode())[:_KEY_LENGTH]}


def _executors(ir: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name of the component without its number, section of a training, label of the executor."""
    sections = {
        task["componentRef"]["name"]: given["section"]["runtimeValue"]["constant"]
        for task in _executed_tasks(ir)
        if "section" in (given := task.get("inputs", {}).get("parameters", {}))
    }
    for name, component in sorted(ir["components"].items()):
        if "executorLabel" in component:
            plain = re.sub(r"-\d+$", "", name.removeprefix("comp-"))
            yield plain, sections.get(name, ""), component["executorLabel"]


def _executed_tasks(ir: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The tasks that are pods of their own, not the graphs around them."""
    for graph in graphs(ir):
        for task in graph["tasks"].values():
            if "executorLabel" in ir["components"][task["componentRef"]["name"]]:
                yield task


def _place_container(
    container: dict[str, Any], component: str, gpus: int, placement: Placement
) -> None:
    container["image"] = placement.image
    _set_variables(container, placement.environment)
    if placement.certificates is not None:
        _set_variables(container, {"AWS_CA_BUNDLE": f"{_CA_FOLDER}/{placement.certificates.key}"})
    resources: dict[str, Any] = container.get("resources", {})
    if component in _TRAINS | _INFERS:
        if placement.cpu:
            resources["resourceCpuRequest"] = placement.cpu
        if placement.memory:
            resources["resourceMemoryRequest"] = placement.memory
            resources["resourceMemoryLimit"] = placement.memory
    if gpus:
        # Servers before 2.5 read the first two names, later ones the others.
        kind, count = placement.gpu_type, str(gpus)
        resources["accelerator"] = {
            "type": kind,
            "count": count,
            "resourceType": kind,
            "resourceCount": count,
        }
    if resources:
        container["resources"] = resources


def _set_variables(container: dict[str, Any], more: Mapping[str, str]) -> None:
    known = {entry["name"]: entry["value"] for entry in container.get("env", ())}
    merged = {**known, **more}
    if merged:
        container["env"] = [{"name": name, "value": merged[name]} for name in sorted(merged)]


def _share_claim(
    container: dict[str, Any], settings: dict[str, Any], machines: NodesConfig
) -> None:
    """Have a task work where its machines see it: what it brings from S3 is temporary files."""
    _set_variables(container, {"TMPDIR": machines.claim_path})
    settings["pvcMount"] = [
        {
            "mountPath": machines.claim_path,
            "constant": machines.claim,
            "pvcNameParameter": {"runtimeValue": {"constant": machines.claim}},
        }
    ]


def _place_pod(settings: dict[str, Any], gpus: int, placement: Placement) -> None:
    settings.setdefault("podMetadata", {}).setdefault("labels", {}).update(RUN_LABEL)
    settings["securityContext"] = {"runAsNonRoot": True}
    if placement.secret:
        settings.setdefault("secretAsEnv", []).extend(
            {
                "secretName": placement.secret,
                "secretNameParameter": {"runtimeValue": {"constant": placement.secret}},
                "keyToEnv": [{"secretKey": key, "envVar": key} for key in keys],
                "optional": optional,
            }
            for keys, optional in ((KEYS, False), ((TOKEN,), True))
        )
    if placement.certificates is not None:
        name = placement.certificates.config_map
        settings.setdefault("configMapAsVolume", []).append(
            {
                "configMapName": name,
                "configMapNameParameter": {"runtimeValue": {"constant": name}},
                "mountPath": _CA_FOLDER,
                "optional": False,
            }
        )
    if placement.pull_secret:
        settings["imagePullSecret"] = [
            {
                "secretName": placement.pull_secret,
                "secretNameParameter": {"runtimeValue": {"constant": placement.pull_secret}},
            }
        ]
    if placement.gpus and not gpus:
        return
    if placement.node_selector:
        settings["nodeSelector"] = {"labels": dict(placement.node_selector)}
    if placement.tolerations:
        settings["tolerations"] = [dict(toleration) for toleration in placement.tolerations]
