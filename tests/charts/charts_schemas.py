"""Strict checks of objects: Kubernetes 1.34's OpenAPI, 1.30's client models, and five CRDs.

An unknown field is a failure, as the API server with strict field validation has it.
kubernetes-1.34.json was written by tools/kubernetes_schemas.py from a running API server.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from kubernetes import client as models

FILE = Path(__file__).with_name("kubernetes-1.34.json")
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
TEXT = {"type": "string"}
NUMBER = {"type": "integer"}


def _record(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _custom(spec: Any) -> dict[str, Any]:
    metadata = _record(
        "name namespace labels", name=TEXT, namespace=TEXT, labels=STRINGS, annotations=STRINGS
    )
    return _record("spec", apiVersion=TEXT, kind=TEXT, metadata=metadata, spec=spec)


_BEHAVIOR = {"$ref": "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerBehavior"}
_SELECTOR = {"$ref": "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"}


def _core(kind: str) -> dict[str, str]:
    return {"$ref": f"io.k8s.api.core.v1.{kind}"}


def _nested(inner: Any, *names: str) -> Any:
    """`{names[0]: {names[1]: ... inner}}`, and nothing beside."""
    return inner if not names else _record(names[0], **{names[0]: _nested(inner, *names[1:])})


_POD_PATCH = _record(
    "",
    metadata=_record("", labels=STRINGS, annotations=STRINGS),
    spec=_record(
        "",
        serviceAccountName=TEXT,
        volumes=_list(_core("Volume")),
        containers=_list(
            _record(
                "name",
                name=TEXT,
                volumeMounts=_list(_core("VolumeMount")),
                securityContext=_core("SecurityContext"),
            )
        ),
        imagePullSecrets=_list(_core("LocalObjectReference")),
        securityContext=_core("PodSecurityContext"),
        nodeSelector=STRINGS,
        tolerations=_list(_core("Toleration")),
    ),
)
"""What Trainer 2.3 lets a TrainJob change of the pods; no `env` for the container `node`."""

_JOB_PATCH = _record("name template", name=TEXT, template=_nested(_POD_PATCH, "spec", "template"))
TRAIN_JOB = _custom(
    _record(
        "runtimeRef",
        runtimeRef=_record("name", apiGroup=TEXT, kind=TEXT, name=TEXT),
        trainer=_record(
            "",
            image=TEXT,
            command=_list(TEXT),
            args=_list(TEXT),
            env=_list(_core("EnvVar")),
            numNodes=NUMBER,
            numProcPerNode=NUMBER,
            resourcesPerNode=_core("ResourceRequirements"),
        ),
        runtimePatches=_list(
            _record(
                "manager",
                manager=TEXT,
                trainingRuntimeSpec=_nested(
                    _list(_JOB_PATCH), "template", "spec", "replicatedJobs"
                ),
            )
        ),
        suspend={"type": "boolean"},
        activeDeadlineSeconds=NUMBER,
    )
)
CUSTOM = {
    "monitoring.coreos.com/v1/ServiceMonitor": _custom(
        _record(
            "endpoints selector",
            endpoints=_list(_record("", port=TEXT, path=TEXT, interval=TEXT)),
            selector=_SELECTOR,
            namespaceSelector=_record("", matchNames=_list(TEXT)),
        )
    ),
    "monitoring.coreos.com/v1/PrometheusRule": _custom(
        _record(
            "",
            groups=_list(
                _record(
                    "name",
                    name=TEXT,
                    interval=TEXT,
                    rules=_list(_record("expr", record=TEXT, expr=TEXT)),
                )
            ),
        )
    ),
    "keda.sh/v1alpha1/ScaledObject": _custom(
        _record(
            "scaleTargetRef triggers",
            scaleTargetRef=_record("name", apiVersion=TEXT, kind=TEXT, name=TEXT),
            minReplicaCount=NUMBER,
            maxReplicaCount=NUMBER,
            pollingInterval=NUMBER,
            advanced=_record("", horizontalPodAutoscalerConfig=_record("", behavior=_BEHAVIOR)),
            triggers=_list(
                _record(
                    "type metadata",
                    type=TEXT,
                    metricType={"type": "string", "enum": ["AverageValue", "Value"]},
                    metadata=STRINGS,
                )
            ),
        )
    ),
    "kueue.x-k8s.io/v1beta1/LocalQueue": _custom(_record("clusterQueue", clusterQueue=TEXT)),
    "trainer.kubeflow.org/v1alpha1/TrainJob": TRAIN_JOB,
}
"""What we use of the custom resources, by hand: no cluster of the tests defines them."""


@functools.cache
def _document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return loaded


def problems(found: dict[str, Any]) -> list[str]:
    """What Kubernetes 1.34 would refuse in an object, as readable lines."""
    key = f"{found['apiVersion']}/{found['kind']}"
    if key in CUSTOM:
        return list(_walk(found, CUSTOM[key], found["kind"]))
    name = _document()["kinds"].get(key)
    if name is None:
        return [f"{key}: no such kind"]
    return list(_walk(found, _document()["schemas"][name], found["kind"]))


def _walk(value: Any, schema: dict[str, Any], path: str) -> Any:
    if "$ref" in schema:
        schema = _document()["schemas"][schema["$ref"]]
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, (int, str, float)):
            yield f"{path}: neither number nor string"
        return
    wanted = schema.get("type")
    is_wrong_bool = isinstance(value, bool) and wanted != "boolean"
    if wanted and (is_wrong_bool or not isinstance(value, TYPES[wanted])):
        yield f"{path}: {type(value).__name__} instead of {wanted}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is not one of {schema['enum']}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, schema.get("items", {}), f"{path}[{index}]")
    elif isinstance(value, dict):
        yield from _walk_map(value, schema, path)


def _walk_map(value: dict[str, Any], schema: dict[str, Any], path: str) -> Any:
    known = schema.get("properties", {})
    more = schema.get("additionalProperties")
    yield from (f"{path}.{key}: missing" for key in schema.get("required", []) if key not in value)
    for key, item in value.items():
        if key in known:
            yield from _walk(item, known[key], f"{path}.{key}")
        elif more is not None:
            yield from _walk(item, more, f"{path}.{key}")
        elif known:
            yield f"{path}.{key}: unknown field"


def client_problems(found: dict[str, Any]) -> list[str]:
    """What the models of the `kubernetes` package (Kubernetes 1.30) do not know in an object."""
    group, _, version = found["apiVersion"].rpartition("/")
    assert group in ("", "apps", "autoscaling", "policy") or group.endswith(".k8s.io"), group
    name = f"{version[0].upper()}{version[1:]}{found['kind']}"
    return list(_walk_model(found, name, found["kind"]))


def _walk_model(value: Any, kind: str, path: str) -> Any:
    part = re.fullmatch(r"(list\[|dict\(str, )(.+)[\])]", kind)
    if part is not None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            yield from _walk_model(item, part[2], f"{path}.{key}")
        return
    model = getattr(models, kind, None)
    if model is None:  # a plain type; the other check looks at these
        return
    fields = {name: model.openapi_types[own] for own, name in model.attribute_map.items()}
    for key, item in value.items():
        if key not in fields:
            yield f"{path}.{key}: unknown field"
        else:
            yield from _walk_model(item, fields[key], f"{path}.{key}")
