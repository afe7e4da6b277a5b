"""What a submission needs of the cluster, looked at before it costs anybody an hour."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from sssflow.errors import SssflowError, UsageError
from sssflow.pipeline.kfp_api import KfpApi
from sssflow.pipeline.kube import Kube
from sssflow.pipeline.submission import KEYS, TOKEN, Certificates
from sssflow.storage.places import open_place

State = Literal["ok", "note", "missing"]

RIGHTS = (
    ("argoproj.io", "workflowtaskresults", "create"),
    ("argoproj.io", "workflowtaskresults", "patch"),
    ("", "pods", "get"),
)
"""What every task's service account must be allowed: group, resource, verb."""

_TRAINER = "trainer.kubeflow.org"
_OF_MACHINES = (("", "pods", "list"), ("", "pods/log", "get"))
_OF_TRAIN_JOBS = tuple(
    (_TRAINER, "trainjobs", verb) for verb in ("create", "get", "patch", "delete")
)
_OF_JOBS = (
    *(("batch", "jobs", verb) for verb in ("create", "get", "patch", "delete")),
    *(("", "services", verb) for verb in ("create", "get", "delete")),
)
"""What the same account needs beside, where its task starts machines for a training."""

_CLUSTER_NAME = re.compile(r"(?P<service>[a-z][a-z0-9-]*)(\.(?P<namespace>[a-z0-9-]+)\.svc.*)?")


@dataclass(frozen=True)
class Check:
    """One line of the table; `missing` makes the exit code 69."""

    subject: str
    state: State
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Needs:
    """What the submission that is asked about would use.

    Attributes:
        store: Where results go; empty: not looked at.
        secret: Secret with the keys of the object store; empty: none is used.
        certificates: ConfigMap with the certificates of the object store; None: none is used.
        account: Service account of the tasks.
        gpus: GPUs of the largest task.
        gpu_type: Name of the resource.
        node_selector: Labels that a node must have.
        tolerations: Taints that the tasks bear.
        triton: Address of Triton as a pod writes it; empty: not used.
        machines: Whether trainings run on machines of their own (`pipeline.nodes`).
        claims: Whether checkpoints go to volumes, so that a storage class is needed.
    """

    store: str = ""
    secret: str = ""
    certificates: Certificates | None = None
    account: str = "pipeline-runner"
    gpus: int = 0
    gpu_type: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    triton: str = ""
    machines: bool = False
    claims: bool = False


def examine(
    needs: Needs,
    open_api: Callable[[], KfpApi],
    open_kube: Callable[[], Kube],
    triton_answers: Callable[[str], bool],
) -> list[Check]:
    """All checks; a failure of one hides none of the others.

    Args:
        needs: What would be used.
        open_api: Gives the KFP server.
        open_kube: Gives the namespace.
        triton_answers: Whether the Triton at an address that this machine reaches is ready.
    """
    found = _server(open_api)
    found += _attempt("object store", lambda: _bucket(needs.store))
    try:
        kube = open_kube()
        version = kube.get("/version").get("gitVersion", "unknown")
    except (SssflowError, LookupError, PermissionError) as error:
        return [*found, _failed("Kubernetes API", error, "Check the kubeconfig.")]
    found.append(Check("Kubernetes API", "ok", str(version)))
    for subject, check in (
        ("namespace", lambda: _namespace(kube)),
        ("secret", lambda: _secret(kube, needs.secret)),
        ("S3 CA", lambda: _certificates(kube, needs.certificates)),
        ("service account", lambda: _account(kube, needs.account)),
        ("rights", lambda: _rights(kube, needs.account)),
        ("machines", lambda: _machines(kube, needs)),
        ("GPUs", lambda: _gpus(kube, needs)),
        ("storage class", lambda: _storage_class(kube, needed=needs.claims)),
        ("Triton", lambda: _triton(kube, needs.triton, triton_answers)),
    ):
        found += _attempt(subject, check)
    return found


def _attempt(subject: str, check: Callable[[], Check]) -> list[Check]:
    try:
        return [check()]
    except PermissionError as error:
        text = f"cannot be looked at with this kubeconfig ({error})"
        return [Check(subject, "note", text, "Ask who administers the cluster.")]
    except (SssflowError, LookupError) as error:
        return [_failed(subject, error, "")]


def _failed(subject: str, error: Exception, remedy: str) -> Check:
    if isinstance(error, SssflowError):
        facts = "; ".join(text for text in (error.what, error.where, error.found) if text)
        return Check(subject, "missing", facts, error.action or remedy)
    return Check(subject, "missing", str(error), remedy)


def _server(open_api: Callable[[], KfpApi]) -> list[Check]:
    try:
        api = open_api()
        multi_user = api.is_multi_user()
    except SssflowError as error:
        return [_failed("KFP API", error, "Check --host.")]
    found = [Check("KFP API", "ok", api.address.host)]
    if multi_user and not api.address.namespace:
        remedy = "Name yours with --profile."
        found.append(Check("KFP profile", "missing", "the server has several users", remedy))
    told, ours = api.version(), metadata.version("kfp")
    if not told:
        return [*found, Check("KFP version", "note", f"not told by the server; the SDK is {ours}")]
    if _numbers(told) >= _numbers(ours)[:2]:
        return [*found, Check("KFP version", "ok", f"server {told}, SDK {ours}")]
    detail = (
        f"server {told} is older than the SDK {ours}: it ignores settings that it does not know"
    )
    return [*found, Check("KFP version", "note", detail, "Upgrade the server when you can.")]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _bucket(store: str) -> Check:
    subject = "object store"
    if not store:
        return Check(subject, "note", "not looked at", "Name it with --store.")
    if not store.startswith("s3://"):
        raise UsageError(
            "The store must lie in S3.",
            where=store,
            expected="s3://BUCKET/PREFIX",
            action="Correct --store.",
        )
    place, name = open_place(store), f"preflight-{secrets.token_hex(8)}"
    data = secrets.token_bytes(32)
    place.put_bytes(name, data)
    try:
        same = place.get_bytes(name) == data
    finally:
        place.delete(name)
    if same:
        return Check(subject, "ok", f"{store}: written, read and deleted from here")
    remedy = "Check what stands between this machine and the store."
    return Check(subject, "missing", f"{store}: other bytes came back", remedy)


def _namespace(kube: Kube) -> Check:
    try:
        labels = kube.get(f"/api/v1/namespaces/{kube.namespace}")["metadata"].get("labels", {})
    except LookupError:
        remedy = f"kubectl create namespace {kube.namespace}, or name another with --namespace."
        return Check("namespace", "missing", f"{kube.namespace} does not exist", remedy)
    enforced = labels.get("pod-security.kubernetes.io/enforce", "nothing")
    return Check("namespace", "ok", f"{kube.namespace}, pod security enforces {enforced}")


def _secret(kube: Kube, name: str) -> Check:
    if not name:
        return Check("secret", "note", "none: the pods' role must open the store")
    how = " ".join(f"--from-literal={key}=..." for key in KEYS)
    remedy = f"kubectl -n {kube.namespace} create secret generic {name} {how}"
    try:
        data = kube.get(f"/api/v1/namespaces/{kube.namespace}/secrets/{name}").get("data") or {}
    except LookupError:
        return Check("secret", "missing", f"{name} does not exist", remedy)
    absent = [key for key in KEYS if not data.get(key)]
    if absent:
        return Check("secret", "missing", f"{name} lacks {', '.join(absent)}", remedy)
    temporary = f", temporary keys with {TOKEN}" if data.get(TOKEN) else ""
    return Check("secret", "ok", f"{name}{temporary}")


def _certificates(kube: Kube, wanted: Certificates | None) -> Check:
    if wanted is None:
        return Check("S3 CA", "ok", "none of its own")
    name, key = wanted.config_map, wanted.key
    remedy = f"kubectl -n {kube.namespace} create configmap {name} --from-file={key}=CERTIFICATES"
    try:
        data = kube.get(f"/api/v1/namespaces/{kube.namespace}/configmaps/{name}").get("data") or {}
    except LookupError:
        return Check("S3 CA", "missing", f"{name} does not exist", remedy)
    if "BEGIN CERTIFICATE" not in data.get(key, ""):
        return Check("S3 CA", "missing", f"{name} has no certificates in {key}", remedy)
    return Check("S3 CA", "ok", f"{name}/{key}")


def _account(kube: Kube, name: str) -> Check:
    try:
        kube.get(f"/api/v1/namespaces/{kube.namespace}/serviceaccounts/{name}")
    except LookupError:
        remedy = "Install the chart sssflow, or name the account with --service-account."
        return Check("service account", "missing", f"{name} does not exist", remedy)
    return Check("service account", "ok", name)


def _rights(kube: Kube, account: str) -> Check:
    lacking = _lacking(kube, account, RIGHTS)
    if lacking:
        remedy = f"Install the chart sssflow with rbac.extraServiceAccounts: [{account}]."
        return Check("rights", "missing", f"{account} may not {', '.join(lacking)}", remedy)
    return Check("rights", "ok", f"{account} may report results and read pods")


def _lacking(kube: Kube, account: str, rights: Sequence[tuple[str, str, str]]) -> list[str]:
    return [
        f"{verb} {resource}"
        for group, resource, verb in rights
        if not kube.allowed(account, group, resource, verb)
    ]


def _machines(kube: Kube, needs: Needs) -> Check:
    if not needs.machines:
        return Check("machines", "ok", "each training has one pod")
    try:
        kube.get(f"/apis/{_TRAINER}/v1alpha1")
        kind, own = "a TrainJob", _OF_TRAIN_JOBS
    except LookupError:
        kind, own = "an Indexed Job, Kubeflow Trainer is not here", _OF_JOBS
    lacking = _lacking(kube, needs.account, (*own, *_OF_MACHINES))
    if lacking:
        remedy = (
            "Install the chart sssflow with rbac.training: true and "
            f"rbac.extraServiceAccounts: [{needs.account}]."
        )
        detail = f"{needs.account} may not {', '.join(lacking)}"
        return Check("machines", "missing", detail, remedy)
    return Check("machines", "ok", kind)


def _gpus(kube: Kube, needs: Needs) -> Check:
    if not needs.gpus:
        return Check("GPUs", "note", "none asked for: everything runs on CPUs")
    best, passed = 0, []
    for node in kube.get("/api/v1/nodes")["items"]:
        count = int(node.get("status", {}).get("allocatable", {}).get(needs.gpu_type, 0))
        obstacle = _obstacle(node, needs)
        if count and obstacle:
            passed.append(f"{node['metadata']['name']} ({obstacle})")
        elif count:
            best = max(best, count)
    asked = f"{needs.gpus} x {needs.gpu_type} on one node"
    if best >= needs.gpus:
        return Check("GPUs", "ok", f"{asked}: a node offers {best}")
    detail = f"{asked}: no node offers more than {best}" + (
        f"; not for these tasks: {', '.join(passed)}" if passed else ""
    )
    remedy = "Ask for fewer, install the device plugin, or correct --gpu-type, --node-selector and "
    return Check("GPUs", "missing", detail, remedy + "--toleration.")


def _obstacle(node: dict[str, Any], needs: Needs) -> str:
    """Why tasks cannot go to a node; empty if they can."""
    labels = node["metadata"].get("labels", {})
    for key, value in needs.node_selector.items():
        if labels.get(key) != value:
            return f"has no label {key}={value}"
    if node.get("spec", {}).get("unschedulable"):
        return "is cordoned"
    for taint in node.get("spec", {}).get("taints", ()):
        if taint["effect"] != "PreferNoSchedule" and not _borne(taint, needs.tolerations):
            return f"is tainted {taint['key']}:{taint['effect']}"
    return ""


def _borne(taint: dict[str, str], tolerations: tuple[Mapping[str, str], ...]) -> bool:
    return any(
        toleration["key"] == taint["key"]
        and toleration.get("effect", taint["effect"]) == taint["effect"]
        and (toleration["operator"] == "Exists" or toleration["value"] == taint.get("value", ""))
        for toleration in tolerations
    )


def _storage_class(kube: Kube, *, needed: bool) -> Check:
    found = kube.get("/apis/storage.k8s.io/v1/storageclasses")["items"]
    mark = "storageclass.kubernetes.io/is-default-class"
    default = [
        c["metadata"]["name"]
        for c in found
        if c["metadata"].get("annotations", {}).get(mark) == "true"
    ]
    if default:
        return Check("storage class", "ok", f"{default[0]} by default")
    detail = f"no default among {len(found)}; checkpoints go to the object store"
    remedy = "Set checkpoints.storageClassName of the chart sssflow."
    return Check("storage class", "missing" if needed else "note", detail, remedy)


def _triton(kube: Kube, address: str, answers: Callable[[str], bool]) -> Check:
    """A service of the cluster is judged by its ready pods: this machine may not reach it."""
    if not address:
        return Check("Triton", "note", "not used: SAM-2 runs inside its task")
    host = address.rpartition("//")[2].rpartition(":")[0]
    found = _CLUSTER_NAME.fullmatch(host)
    inside = found is not None and host != "localhost"
    if not inside or found is None:
        if answers(address):
            return Check("Triton", "ok", f"{address} is ready")
        remedy = "Start it, and wait until its models are ready."
        return Check("Triton", "missing", f"{address} is not ready", remedy)
    namespace, service = found["namespace"] or kube.namespace, found["service"]
    slices = kube.get(
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        labelSelector=f"kubernetes.io/service-name={service}",
    )["items"]
    ready = sum(
        bool(endpoint.get("conditions", {}).get("ready"))
        for part in slices
        for endpoint in part.get("endpoints") or ()
    )
    where = f"service {service} in {namespace}"
    if ready:
        return Check("Triton", "ok", f"{where}: {ready} pod(s) ready")
    detail = f"{where}: " + ("no pod is ready" if slices else "does not exist")
    remedy = f"helm install {service} charts/sam2-triton -n {namespace}, and see its pods' logs."
    return Check("Triton", "missing", detail, remedy)
