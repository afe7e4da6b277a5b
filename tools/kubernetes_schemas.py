"""Write the schemas that tests check objects against, from a running API server.

`KUBECONFIG=... python tools/kubernetes_schemas.py tests/charts/kubernetes-1.34.json` asks the
cluster by kubectl. Descriptions are left out; what the kinds below refer to comes along.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

GROUPS = {
    "api/v1": [
        "Namespace",
        "Secret",
        "ConfigMap",
        "Service",
        "ServiceAccount",
        "PersistentVolumeClaim",
        "ResourceQuota",
        "LimitRange",
    ],
    "apis/apps/v1": ["Deployment"],
    "apis/batch/v1": ["Job"],
    "apis/autoscaling/v2": ["HorizontalPodAutoscaler"],
    "apis/policy/v1": ["PodDisruptionBudget"],
    "apis/networking.k8s.io/v1": ["NetworkPolicy"],
    "apis/rbac.authorization.k8s.io/v1": ["Role", "RoleBinding"],
}
"""Path of a group under /openapi/v3, and the kinds of it that charts and trainings make."""

KEPT = ("type", "format", "required", "enum", "x-kubernetes-int-or-string")


def ask(path: str) -> Any:
    """JSON document of the API server at `path`."""
    command = ["kubectl", "get", "--raw", path]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)  # noqa: S603


def slim(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without prose: type, required fields, and references by their last name."""
    if "$ref" in schema:
        return {"$ref": schema["$ref"].rsplit("/", 1)[-1]}
    if len(schema.get("allOf", [])) == 1:
        return slim(schema["allOf"][0])
    small = {key: schema[key] for key in KEPT if key in schema}
    if "oneOf" in schema or schema.get("format") == "int-or-string":
        small = {"x-kubernetes-int-or-string": True}
    if "properties" in schema:
        small["properties"] = {k: slim(v) for k, v in sorted(schema["properties"].items())}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            small[key] = slim(schema[key])
    return small


def references(schema: Any) -> set[str]:
    """Names of all schemas that one refers to."""
    if isinstance(schema, list):
        return set().union(*map(references, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    found = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
    return found.union(*map(references, schema.values()))


def collect() -> dict[str, Any]:
    """Version of the server, kinds by apiVersion and kind, and every schema they need."""
    kinds: dict[str, str] = {}
    schemas: dict[str, Any] = {}
    for path, wanted in GROUPS.items():
        components = ask(f"/openapi/v3/{path}")["components"]["schemas"]
        group_version = path.removeprefix("apis/").removeprefix("api/")
        for name, schema in components.items():
            for found in schema.get("x-kubernetes-group-version-kind", []):
                if found["kind"] in wanted and name.endswith(f".{found['kind']}"):
                    kinds[f"{group_version}/{found['kind']}"] = name
        todo = {kinds[f"{group_version}/{kind}"] for kind in wanted}
        while todo:
            name = todo.pop()
            if name not in schemas:
                schemas[name] = slim(components[name])
                todo |= references(schemas[name])
    return {"version": ask("/version")["gitVersion"], "kinds": kinds, "schemas": schemas}


if __name__ == "__main__":
    document = json.dumps(collect(), sort_keys=True, separators=(",", ":"))
    Path(sys.argv[1]).write_text(document + "\n", encoding="utf-8")
