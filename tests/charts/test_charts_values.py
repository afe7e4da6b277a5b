"""Every value does something, and a wrong one is refused before anything is installed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from charts_rendering import CHARTS, Refused, Renderer, defaults, leaves, nested

pytestmark = pytest.mark.timeout(1800)

DIGEST = f"sha256:{'a' * 64}"
FIXED_KEY = {"adminApi": {"key": "fixed"}}
S3, IMAGE, HPA, KEDA = (f"ci/{name}-values.yaml" for name in ("s3", "image", "hpa", "keda"))
GPU = "values-gpu.yaml"

TRITON: dict[str, tuple[Any, str]] = {
    "nameOverride": ("other", ""),
    "fullnameOverride": ("other", ""),
    "profile": ("gpu", ""),
    "replicas": (3, ""),
    "image.repository": ("registry.example/triton", ""),
    "image.tag": ("26.08-py3", ""),
    "image.digest": (DIGEST, ""),
    "image.pullPolicy": ("Always", ""),
    "imagePullSecrets": ([{"name": "pull"}], ""),
    "modelRepository.type": ("pvc", S3),
    "modelRepository.path": ("models/v2", ""),
    "modelRepository.digest": ("b" * 64, ""),
    "modelRepository.sizeLimit": ("1Gi", ""),
    "modelRepository.pvc.claimName": ("other", ""),
    "modelRepository.s3.uri": ("s3://other/prefix", S3),
    "modelRepository.s3.endpointUrl": ("https://store:9000", S3),
    "modelRepository.s3.region": ("eu-central-1", S3),
    "modelRepository.s3.existingSecret": ("", S3),
    "modelRepository.s3.ca.configMap": ("", S3),
    "modelRepository.s3.ca.key": ("root.pem", S3),
    "modelRepository.image.reference": (f"registry.example/other@{DIGEST}", IMAGE),
    "modelRepository.image.pullPolicy": ("Always", IMAGE),
    "sync.image.repository": ("registry.example/pipeline", ""),
    "sync.image.tag": ("9.9", ""),
    "sync.image.digest": (DIGEST, ""),
    "sync.image.pullPolicy": ("Never", ""),
    "sync.resources.requests": ({"cpu": "2"}, ""),
    "sync.resources.limits": ({"memory": "9Gi"}, ""),
    "models": (["sam2_predict"], ""),
    "readinessModel": ("sam2_encoder", ""),
    "server.responseCacheMiB": (64, ""),
    "server.exitTimeoutSeconds": (60, ""),
    "server.drainSeconds": (0, ""),
    "server.grpcConnectionSeconds": (0, ""),
    "server.httpInference": (True, ""),
    "server.verbosity": (1, ""),
    "server.extraArgs": (["--log-format=ISO8601"], ""),
    "adminApi.restricted": (["logging"], ""),
    "adminApi.header": ("other", ""),
    "adminApi.key": ("other", ""),
    "adminApi.existingSecret": ("other", ""),
    "adminApi.existingSecretKey": ("other", HPA),
    "resources.requests": ({"cpu": "1"}, ""),
    "resources.limits": ({"memory": "9Gi"}, ""),
    "gpu.resourceName": ("amd.com/gpu", GPU),
    "gpu.count": (2, GPU),
    "volumes.shmSize": ("1Gi", ""),
    "volumes.tmpSize": ("2Gi", ""),
    "volumes.cacheSize": ("3Gi", ""),
    "probes.startupSeconds": (60, ""),
    "probes.periodSeconds": (3, ""),
    "probes.timeoutSeconds": (3, ""),
    "probes.failureThreshold": (9, ""),
    "autoscaling.mode": ("hpa", ""),
    "autoscaling.minReplicas": (3, HPA),
    "autoscaling.maxReplicas": (9, HPA),
    "autoscaling.targetQueuePercent": (80, HPA),
    "autoscaling.scaleDownStabilizationSeconds": (60, HPA),
    "autoscaling.keda.prometheusUrl": ("http://other:9090", KEDA),
    "autoscaling.keda.pollingIntervalSeconds": (30, KEDA),
    "prometheusRule.enabled": (True, ""),
    "prometheusRule.labels": ({"release": "prometheus"}, HPA),
    "serviceMonitor.enabled": (True, ""),
    "serviceMonitor.interval": ("5s", HPA),
    "serviceMonitor.labels": ({"release": "prometheus"}, HPA),
    "podDisruptionBudget.enabled": (False, ""),
    "podDisruptionBudget.maxUnavailable": ("25%", ""),
    "networkPolicy.enabled": (False, ""),
    "networkPolicy.clients": ([{"namespaceSelector": {}}], ""),
    "networkPolicy.monitoring": ([], ""),
    "networkPolicy.objectStore": ([{"ipBlock": {"cidr": "10.0.0.0/8"}}], S3),
    "service.type": ("NodePort", ""),
    "service.httpPort": (80, ""),
    "service.grpcPort": (81, ""),
    "service.annotations": ({"a": "b"}, ""),
    "serviceAccountName": ("models-reader", ""),
    "podSecurity.runAsUser": (2000, ""),
    "podSecurity.runAsGroup": (2000, ""),
    "podSecurity.fsGroup": (2000, ""),
    "rollout.maxSurge": (2, ""),
    "rollout.maxUnavailable": (1, ""),
    "topologySpread.enabled": (False, ""),
    "topologySpread.topologyKey": ("topology.kubernetes.io/zone", ""),
    "topologySpread.whenUnsatisfiable": ("DoNotSchedule", ""),
    "nodeSelector": ({"gpu": "h100"}, ""),
    "tolerations": ([{"key": "gpu", "operator": "Exists"}], ""),
    "affinity": ({"nodeAffinity": {}}, ""),
    "priorityClassName": ("high", ""),
    "podLabels": ({"kueue.x-k8s.io/queue-name": "q"}, ""),
    "podAnnotations": ({"a": "b"}, ""),
    "env": ([{"name": "A", "value": "b"}], ""),
}
FULL, OWN_NAMESPACE = "ci/full-values.yaml", "ci/namespace-values.yaml"
SSSFLOW: dict[str, tuple[Any, str]] = {
    "nameOverride": ("other", ""),
    "fullnameOverride": ("other", ""),
    "namespace.create": (False, OWN_NAMESPACE),
    "namespace.name": ("other", OWN_NAMESPACE),
    "namespace.podSecurity": ("baseline", OWN_NAMESPACE),
    "namespace.podSecurityVersion": ("v1.31", OWN_NAMESPACE),
    "namespace.labels": ({"team": "imaging"}, OWN_NAMESPACE),
    "serviceAccount.create": (False, ""),
    "serviceAccount.name": ("other", ""),
    "serviceAccount.annotations": ({"a": "b"}, ""),
    "serviceAccount.imagePullSecrets": ([{"name": "pull"}], ""),
    "rbac.create": (False, ""),
    "rbac.runner": (False, ""),
    "rbac.training": (False, ""),
    "rbac.claims": (True, ""),
    "rbac.extraServiceAccounts": (["pipeline-runner"], ""),
    "s3.endpointUrl": ("https://store", FULL),
    "s3.region": ("eu-central-1", FULL),
    "s3.existingSecret": ("other", FULL),
    "s3.accessKeyId": ("other", OWN_NAMESPACE),
    "s3.secretAccessKey": ("other", OWN_NAMESPACE),
    "s3.accessKeyIdKey": ("accesskey", OWN_NAMESPACE),
    "s3.secretAccessKeyKey": ("secretkey", OWN_NAMESPACE),
    "kfpLauncher.create": (False, FULL),
    "kfpLauncher.pipelineRoot": ("s3://other/runs", FULL),
    "checkpoints.create": (False, FULL),
    "checkpoints.size": ("2Gi", FULL),
    "checkpoints.storageClassName": ("fast", FULL),
    "checkpoints.accessModes": (["ReadWriteMany"], FULL),
    "checkpoints.onUninstall": ("keep", FULL),
    "networkPolicy.enabled": (False, ""),
    "networkPolicy.podLabels": ({"a": "b"}, ""),
    "networkPolicy.externalPorts": ([], ""),
    "networkPolicy.externalCidrs": (["10.0.0.0/8"], ""),
    "quota.enabled": (True, ""),
    "quota.hard": ({"pods": 100}, FULL),
    "limitRange.enabled": (True, ""),
    "limitRange.defaultRequest": ({"cpu": "10m"}, FULL),
    "limitRange.default": ({"cpu": "2"}, FULL),
    "limitRange.max": ({"cpu": "8"}, FULL),
    "kueue.enabled": (False, FULL),
    "kueue.apiVersion": ("kueue.x-k8s.io/v1beta2", FULL),
    "kueue.queueName": ("other", FULL),
    "kueue.clusterQueue": ("other", FULL),
}
EFFECTS = {"sam2-triton": TRITON, "sssflow": SSSFLOW}
"""Per value another one, and the values file on which it must change what is rendered."""
ALSO = {"namespace.create": {"namespace": {"create": False, "name": ""}}}
"""Changes that need another one beside them."""
CASES = [(chart, value) for chart, effects in EFFECTS.items() for value in effects]


@pytest.mark.parametrize("chart", CHARTS)
def test_the_table_of_effects_names_every_value(chart: str) -> None:
    schema = json.loads((CHARTS[chart] / "values.schema.json").read_text("utf-8"))
    paths = {".".join(path) for path in leaves(defaults(chart), schema)}
    # A map of any resources counts as one value.
    own = {p.rsplit(".", 1)[0] if ".requests." in p or ".limits." in p else p for p in paths}
    assert set(EFFECTS[chart]) == own


@pytest.mark.parametrize(("chart", "value"), CASES)
def test_every_value_changes_what_is_rendered(charts: Renderer, chart: str, value: str) -> None:
    changed, overlay = EFFECTS[chart][value]
    base = dict(FIXED_KEY) if chart == "sam2-triton" and overlay != HPA else {}
    other = ALSO.get(value) or nested(tuple(value.split(".")), changed)
    if "adminApi" in other and base:
        other = {"adminApi": {**base["adminApi"], **other["adminApi"]}}
    before = charts.text(chart, overlay, base)
    assert before == charts.text(chart, overlay, base)
    assert charts.text(chart, overlay, {**base, **other}) != before


REFUSED: list[tuple[str, str, Any, str]] = [
    ("sam2-triton", "replicas", -1, "minimum"),
    ("sam2-triton", "replicas", "two", "want integer"),
    ("sam2-triton", "replicaCount", 2, "additional properties 'replicaCount' not allowed"),
    ("sam2-triton", "image.name", "x", "additional properties 'name' not allowed"),
    ("sam2-triton", "image.tag", "latest", "/image/tag"),
    ("sam2-triton", "image.tag", "", "/image"),
    ("sam2-triton", "image.digest", "sha256:abc", "/image/digest"),
    ("sam2-triton", "image.repository", "nvcr.io/triton:26.07", "/image/repository"),
    ("sam2-triton", "profile", "tpu", "/profile"),
    ("sam2-triton", "models", [], "/models"),
    ("sam2-triton", "models", ["../etc"], "/models/0"),
    ("sam2-triton", "modelRepository.type", "s3", "/modelRepository/s3/uri"),
    ("sam2-triton", "modelRepository.type", "image", "/modelRepository/image/reference"),
    ("sam2-triton", "modelRepository.type", "nfs", "/modelRepository/type"),
    ("sam2-triton", "modelRepository.pvc.claimName", "", "/modelRepository/pvc/claimName"),
    ("sam2-triton", "modelRepository.path", "../other", "/modelRepository/path"),
    ("sam2-triton", "modelRepository.digest", "sha256:1", "/modelRepository/digest"),
    ("sam2-triton", "modelRepository.s3.uri", "http://store/x", "/modelRepository/s3/uri"),
    ("sam2-triton", "modelRepository.image.reference", "models:1", "/modelRepository/image"),
    ("sam2-triton", "server.extraArgs", ["--model-control-mode=poll"], "/server/extraArgs/0"),
    ("sam2-triton", "adminApi.restricted", ["health"], "/adminApi/restricted/0"),
    ("sam2-triton", "adminApi.key", "two words", "/adminApi/key"),
    ("sam2-triton", "resources.limits.memory", "4 GB", "/resources/limits/memory"),
    ("sam2-triton", "resources.limits.cpu", -1, "/resources/limits/cpu"),
    ("sam2-triton", "volumes.shmSize", -1, "/volumes/shmSize"),
    ("sam2-triton", "podSecurity.runAsUser", 0, "/podSecurity/runAsUser"),
    ("sam2-triton", "autoscaling.mode", "keda", "/autoscaling/keda/prometheusUrl"),
    ("sam2-triton", "autoscaling.minReplicas", 9, "is more than autoscaling.maxReplicas"),
    ("sam2-triton", "readinessModel", "other", "is not one of models"),
    ("sam2-triton", "rollout.maxSurge", 0, "/rollout/maxUnavailable"),
    ("sam2-triton", "service.type", "ExternalName", "/service/type"),
    ("sam2-triton", "networkPolicy.clients", [{}], "/networkPolicy/clients/0"),
    ("sssflow", "checkpoints.create", True, "/checkpoints/onUninstall"),
    ("sssflow", "checkpoints.onUninstall", "maybe", "/checkpoints/onUninstall"),
    ("sssflow", "namespace.create", True, "/namespace/name"),
    ("sssflow", "namespace.name", "elsewhere", "/namespace/name"),
    ("sssflow", "kfpLauncher.create", True, "/kfpLauncher/pipelineRoot"),
    ("sssflow", "kfpLauncher.pipelineRoot", "minio://x", "/kfpLauncher/pipelineRoot"),
    ("sssflow", "kueue.enabled", True, "/kueue/clusterQueue"),
    ("sssflow", "s3.accessKeyId", "only", "/s3/secretAccessKey"),
    ("sssflow", "s3.secretAccessKey", "only", "/s3/accessKeyId"),
    ("sssflow", "networkPolicy.podLabels", {"sssflow/run": True}, "/networkPolicy/podLabels"),
    ("sssflow", "networkPolicy.externalPorts", [70000], "/networkPolicy/externalPorts/0"),
    ("sssflow", "quota.hard", {"pods": "many"}, "/quota/hard"),
    ("sssflow", "quota.hard", {"pods": -5}, "/quota/hard/pods"),
    ("sssflow", "rbac.cluster", True, "additional properties 'cluster' not allowed"),
]


@pytest.mark.parametrize(("chart", "value", "wrong", "message"), REFUSED)
def test_a_wrong_value_is_refused_by_name(
    charts: Renderer, chart: str, value: str, wrong: Any, message: str
) -> None:
    with pytest.raises(Refused) as refusal:
        charts.text(chart, "", nested(tuple(value.split(".")), wrong))
    assert message in str(refusal.value)


def test_the_gpu_profile_needs_the_name_of_its_resource(charts: Renderer) -> None:
    with pytest.raises(Refused, match="/gpu/resourceName"):
        charts.text("sam2-triton", GPU, {"gpu": {"resourceName": ""}})


def test_a_claim_in_a_namespace_of_the_release_cannot_be_kept(charts: Renderer) -> None:
    values = {"checkpoints": {"create": True, "onUninstall": "keep"}}
    with pytest.raises(Refused, match="/checkpoints/onUninstall"):
        charts.text("sssflow", OWN_NAMESPACE, values)
