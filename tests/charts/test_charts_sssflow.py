"""Template by template: what a release of sssflow puts into a namespace."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml
from charts_rendering import Object, Renderer, kinds, one

pytestmark = pytest.mark.timeout(1800)

CHART = "sssflow"
FULL, OWN_NAMESPACE = "ci/full-values.yaml", "ci/namespace-values.yaml"

READS = ("get", "list", "watch")
EDITS = ("create", "get", "list", "watch", "patch", "delete")
RUNNER = {
    ("argoproj.io", "workflowtaskresults", ""): ("create", "patch"),
    ("", "pods", ""): READS,
    ("", "configmaps", "kfp-launcher,metadata-grpc-configmap"): ("get",),
    ("", "secrets", "s3-credentials"): ("get",),
    ("", "persistentvolumeclaims", ""): ("create", "get", "list", "delete"),
}
TRAINING = {
    ("trainer.kubeflow.org", "trainjobs", ""): EDITS,
    ("trainer.kubeflow.org", "trainingruntimes", ""): ("get", "list"),
    ("batch", "jobs", ""): EDITS,
    ("", "services", ""): ("create", "get", "list", "delete"),
    ("", "pods", ""): READS,
    ("", "pods/log", ""): ("get",),
    ("", "events", ""): READS,
}


def _rights(role: Object) -> dict[tuple[str, str, str], tuple[str, ...]]:
    return {
        (group, resource, ",".join(rule.get("resourceNames", []))): tuple(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_the_roles_allow_exactly_this(charts: Renderer) -> None:
    objects = charts.objects(CHART, FULL)
    assert _rights(one(objects, "Role", "-runner")) == RUNNER
    assert _rights(one(objects, "Role", "-training")) == TRAINING


def test_without_keys_and_claims_the_runner_reads_no_secret(charts: Renderer) -> None:
    rights = _rights(one(charts.objects(CHART), "Role", "-runner"))
    assert {resource for _, resource, _ in rights} == {"workflowtaskresults", "pods", "configmaps"}


def test_both_roles_are_bound_to_the_account_and_to_those_named(charts: Renderer) -> None:
    objects = charts.objects(CHART, FULL)
    account = one(objects, "ServiceAccount")["metadata"]["name"]
    for suffix in ("-runner", "-training"):
        binding = one(objects, "RoleBinding", suffix)
        assert binding["roleRef"]["name"] == one(objects, "Role", suffix)["metadata"]["name"]
        assert [(s["name"], s["namespace"]) for s in binding["subjects"]] == [
            (account, "team"),
            ("pipeline-runner", "team"),
        ]


@pytest.mark.parametrize(
    ("values", "account"),
    [
        ({}, "demo-sssflow"),
        ({"serviceAccount": {"name": "runs"}}, "runs"),
        ({"serviceAccount": {"create": False}}, "default"),
        ({"serviceAccount": {"create": False, "name": "pipeline-runner"}}, "pipeline-runner"),
    ],
)
def test_the_roles_go_to_the_account_that_runs(
    charts: Renderer, values: Object, account: str
) -> None:
    objects = charts.objects(CHART, "", values)
    subjects = one(objects, "RoleBinding", "-runner")["subjects"]
    assert [s["name"] for s in subjects] == [account]
    made = values.get("serviceAccount", {}).get("create", True)
    assert ("ServiceAccount" in kinds(objects)) == made


def _providers(objects: list[Object]) -> Any:
    data = one(objects, "ConfigMap")["data"]
    return yaml.safe_load(data["providers"])["s3"]["default"]


def test_the_launcher_settings_name_store_region_and_secret(charts: Renderer) -> None:
    objects = charts.objects(CHART, FULL)
    config = one(objects, "ConfigMap")
    assert config["metadata"]["name"] == "kfp-launcher"
    assert config["data"]["defaultPipelineRoot"] == "s3://pipelines/runs"
    assert _providers(objects) == {
        "endpoint": "s3.object-store.svc.cluster.local:7070",
        "disableSSL": True,
        "region": "us-east-1",
        "forcePathStyle": True,
        "credentials": {
            "fromEnv": False,
            "secretRef": {
                "secretName": "s3-credentials",
                "accessKeyKey": "AWS_ACCESS_KEY_ID",
                "secretKeyKey": "AWS_SECRET_ACCESS_KEY",
            },
        },
    }


def test_without_an_endpoint_the_launcher_talks_to_aws_with_its_role(charts: Renderer) -> None:
    values = {"kfpLauncher": {"create": True, "pipelineRoot": "s3://runs"}}
    assert _providers(charts.objects(CHART, "", values)) == {
        "endpoint": "s3.amazonaws.com",
        "disableSSL": False,
        "region": "us-east-1",
        "forcePathStyle": False,
        "credentials": {"fromEnv": True},
    }


def test_given_keys_make_a_secret_that_the_settings_name(charts: Renderer) -> None:
    objects = charts.objects(CHART, OWN_NAMESPACE)
    secret = one(objects, "Secret")
    data = {key: base64.b64decode(value) for key, value in secret["data"].items()}
    assert data == {"AWS_ACCESS_KEY_ID": b"access", "AWS_SECRET_ACCESS_KEY": b"secret"}
    reference = _providers(objects)["credentials"]["secretRef"]
    assert reference["secretName"] == secret["metadata"]["name"]


def test_an_existing_secret_is_used_and_none_is_made(charts: Renderer) -> None:
    assert "Secret" not in kinds(charts.objects(CHART, FULL))


def test_the_policy_of_the_uninstall_is_on_the_claim(charts: Renderer) -> None:
    deleted = one(charts.objects(CHART, FULL), "PersistentVolumeClaim")
    assert "annotations" not in deleted["metadata"]
    assert deleted["spec"]["resources"]["requests"]["storage"] == "1Gi"
    values = {"checkpoints": {"onUninstall": "keep", "storageClassName": "fast"}}
    kept = one(charts.objects(CHART, FULL, values), "PersistentVolumeClaim")
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert kept["spec"]["storageClassName"] == "fast"


def test_pods_of_runs_are_reached_by_each_other_alone(charts: Renderer) -> None:
    policy = one(charts.objects(CHART), "NetworkPolicy")["spec"]
    run = {"matchLabels": {"sssflow/run": "true"}}
    assert policy["podSelector"] == run
    assert policy["ingress"] == [{"from": [{"podSelector": run}]}]


def test_pods_of_runs_reach_the_cluster_and_named_ports_outside(charts: Renderer) -> None:
    values = {"networkPolicy": {"externalPorts": [443], "externalCidrs": ["10.0.0.0/8"]}}
    policy = one(charts.objects(CHART, "", values), "NetworkPolicy")["spec"]
    inside, names, outside = policy["egress"]
    assert inside == {"to": [{"namespaceSelector": {}}]}
    # Wherever they are answered: a node's own cache of names is none of the cluster's pods.
    assert names == {"ports": [{"port": 53, "protocol": p} for p in ("UDP", "TCP")]}
    assert outside == {
        "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "ports": [{"port": 443, "protocol": "TCP"}],
    }
    closed = charts.objects(CHART, "", {"networkPolicy": {"externalPorts": []}})
    assert one(closed, "NetworkPolicy")["spec"]["egress"] == [inside, names]


def test_quota_and_limits_are_the_user_s(charts: Renderer) -> None:
    objects = charts.objects(CHART, FULL)
    hard = one(objects, "ResourceQuota")["spec"]["hard"]
    assert hard["requests.nvidia.com/gpu"] == "4"
    (limits,) = one(objects, "LimitRange")["spec"]["limits"]
    assert limits["type"] == "Container"
    assert limits["default"] == {"cpu": "1", "memory": "4Gi"}
    assert limits["defaultRequest"] == {"cpu": "50m", "memory": "128Mi"}
    assert limits["max"] == {"memory": "128Gi"}


def test_the_queue_leads_to_the_cluster_queue(charts: Renderer) -> None:
    queue = one(charts.objects(CHART, FULL), "LocalQueue")
    assert queue["spec"] == {"clusterQueue": "gpus"}
    assert "kueue.x-k8s.io/queue-name: demo-sssflow" in charts.notes(CHART, FULL)


def test_a_namespace_of_the_release_enforces_restricted_and_holds_everything(
    charts: Renderer,
) -> None:
    objects = charts.objects(CHART, OWN_NAMESPACE)
    namespace = one(objects, "Namespace")
    assert namespace["metadata"]["name"] == "segmentation"
    labels = namespace["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
        assert labels[f"pod-security.kubernetes.io/{mode}-version"] == "v1.30"
    others = [o for o in objects if o["kind"] != "Namespace"]
    assert {o["metadata"]["namespace"] for o in others} == {"segmentation"}
    for binding in (o for o in others if o["kind"] == "RoleBinding"):
        assert {s["namespace"] for s in binding["subjects"]} == {"segmentation"}


def test_the_defaults_leave_what_is_shared_alone(charts: Renderer) -> None:
    assert kinds(charts.objects(CHART)) == {
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "NetworkPolicy",
    }


def test_the_notes_name_account_store_and_labels(charts: Renderer) -> None:
    notes = charts.notes(CHART, FULL)
    assert "service account   demo-sssflow" in notes
    assert "keys in Secret s3-credentials" in notes
    assert 'sssflow/run: "true"' in notes
    assert "on uninstall: delete" in notes
    assert "access by role" in charts.notes(CHART)
