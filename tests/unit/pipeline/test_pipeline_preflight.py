"""The preflight: every need of a submission, each fault with its remedy, none hiding another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kfp")

from kfp_server import FakeKfp, kfp_server
from kube_server import FakeKube, kube_server
from s3_server import Server
from sssflow.errors import UnavailableError, UsageError
from sssflow.pipeline.kfp_api import KfpAddress, KfpApi
from sssflow.pipeline.kube import Kube
from sssflow.pipeline.preflight import Check, Needs, examine
from sssflow.pipeline.submission import parse_certificates

TEAM = "/api/v1/namespaces/team"
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
ENFORCED = "pod-security.kubernetes.io/enforce"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/team/endpointslices"


@pytest.fixture
def fake() -> Iterator[FakeKfp]:
    with kfp_server() as running:
        yield running


def node(name: str, gpus: str, *, labels: dict[str, str], taints: list[Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints},
        "status": {"allocatable": {"cpu": "8", "nvidia.com/gpu": gpus}},
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKube]:
    """A cluster in which all is as it should be."""
    classes = {
        "metadata": {
            "name": "standard",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        }
    }
    with kube_server(tmp_path) as running:
        running.answers.update(
            {
                "/version": {"gitVersion": "v1.34.0"},
                TEAM: {
                    "metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
                },
                f"{TEAM}/secrets/keys": {
                    "data": {"AWS_ACCESS_KEY_ID": "YQ==", "AWS_SECRET_ACCESS_KEY": "Yg=="}
                },
                f"{TEAM}/serviceaccounts/pipeline-runner": {"metadata": {}},
                "/api/v1/nodes": {
                    "items": [
                        node("plain", "0", labels={}, taints=[]),
                        node("big", "4", labels={"pool": "gpu"}, taints=[TAINT]),
                    ]
                },
                "/apis/storage.k8s.io/v1/storageclasses": {"items": [classes]},
                SLICES: {"items": [{"endpoints": [{"conditions": {"ready": True}}]}]},
            }
        )
        yield running


@pytest.fixture
def look(fake: FakeKfp, cluster: FakeKube) -> Callable[..., dict[str, Check]]:
    def looked(**changes: Any) -> dict[str, Check]:
        options: dict[str, Any] = {
            "secret": "keys",
            "gpus": 4,
            "tolerations": (TOLERATION,),
            "triton": "grpc://sam2-sam2-triton:8001",
            **changes,
        }
        address = KfpAddress(fake.url, timeout_s=5, attempts=1)
        found = examine(
            Needs(**options),
            lambda: KfpApi(address),
            lambda: Kube(kubeconfig=str(cluster.kubeconfig)),
            lambda address: address == "grpc://127.0.0.1:1",
        )
        return {check.subject: check for check in found}

    return looked


def test_a_cluster_with_everything_has_no_fault(
    look, server: Server, s3_keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    found = look(store="s3://bucket/preflight")
    assert {name: c.state for name, c in found.items()} == {
        "KFP API": "ok",
        "KFP version": "ok",
        "object store": "ok",
        "Kubernetes API": "ok",
        "namespace": "ok",
        "secret": "ok",
        "S3 CA": "ok",
        "service account": "ok",
        "rights": "ok",
        "machines": "ok",
        "GPUs": "ok",
        "storage class": "ok",
        "Triton": "ok",
    }
    assert "restricted" in found["namespace"].detail
    assert list((server.folder / "bucket").rglob("preflight-*")) == []


def test_all_faults_are_told_at_once_each_with_its_remedy(look, fake, cluster, s3_keys) -> None:
    fake.faults += [("/healthz", 503)]
    cluster.answers = {"/version": {"gitVersion": "v1"}}
    cluster.answers["/api/v1/nodes"] = {"items": []}
    cluster.answers["/apis/storage.k8s.io/v1/storageclasses"] = {"items": []}
    cluster.answers[SLICES] = {"items": []}
    cluster.denied = {"patch workflowtaskresults"}
    found = look(store="https://wrong", claims=True)
    faults = {name for name, check in found.items() if check.state == "missing"}
    assert faults == {
        "KFP API",
        "object store",
        "namespace",
        "secret",
        "service account",
        "rights",
        "GPUs",
        "storage class",
        "Triton",
    }
    assert [name for name in faults if not found[name].remedy] == []
    assert "may not patch workflowtaskresults" in found["rights"].detail
    assert "create secret generic keys" in found["secret"].remedy
    assert "charts/sam2-triton" in found["Triton"].remedy


def test_without_a_kubeconfig_the_server_and_the_store_are_still_looked_at(fake: FakeKfp) -> None:
    def none() -> Kube:
        raise UsageError("There is no usable kubeconfig.", action="Set KUBECONFIG.")

    address = KfpAddress(fake.url, timeout_s=5, attempts=1)
    found = examine(Needs(), lambda: KfpApi(address), none, lambda _: True)
    assert [(c.subject, c.state) for c in found] == [
        ("KFP API", "ok"),
        ("KFP version", "ok"),
        ("object store", "note"),
        ("Kubernetes API", "missing"),
    ]
    assert found[-1].remedy == "Set KUBECONFIG."


def test_a_page_in_the_place_of_an_answer_is_no_kubernetes(look, cluster: FakeKube) -> None:
    cluster.answers["/version"] = "<html>Log in</html>"
    assert "Log in" in look()["Kubernetes API"].detail
    cluster.answers["/version"] = {"gitVersion": "v1"}
    cluster.answers[TEAM] = "<html>Log in</html>"
    assert look()["namespace"].state == "missing"


@pytest.mark.parametrize(
    "text", ["a: [1\nb: }{", "- a", "x", "", "\x00", '{"contexts": null, "current-context": "x"}']
)
def test_a_file_that_is_no_kubeconfig_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(UsageError, match="no usable kubeconfig") as caught:
        Kube(kubeconfig=str(tmp_path / "config"))
    assert caught.value.where == str(tmp_path / "config")


def test_a_cluster_that_is_not_reached_by_tls_says_why(cluster: FakeKube) -> None:
    text = cluster.kubeconfig.read_text().replace("http:", "https:")
    cluster.kubeconfig.write_text(text)
    with pytest.raises(UnavailableError) as caught:
        Kube(kubeconfig=str(cluster.kubeconfig)).get("/version")
    assert "SSLError" in caught.value.found


def test_a_token_that_http_cannot_carry_is_told_but_not_shown(cluster: FakeKube) -> None:
    text = cluster.kubeconfig.read_text().replace('"t"', r'"hidden\nsecond"')
    cluster.kubeconfig.write_text(text)
    with pytest.raises(UnavailableError, match="more than one line") as caught:
        Kube(kubeconfig=str(cluster.kubeconfig)).get("/version")
    assert "hidden" not in caught.value.describe()


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"gpus": 5}, "no node offers more than 4"),
        ({"tolerations": ()}, "big (is tainted nvidia.com/gpu:NoSchedule)"),
        ({"node_selector": {"pool": "other"}}, "big (has no label pool=other)"),
        ({"gpu_type": "amd.com/gpu"}, "no node offers more than 0"),
        (
            {"tolerations": ({"key": "nvidia.com/gpu", "operator": "Equal", "value": "x"},)},
            "is tainted",
        ),
    ],
)
def test_gpus_that_the_tasks_cannot_get_are_missing(look, changes, hint: str) -> None:
    found = look(**changes)["GPUs"]
    assert (found.state, hint in found.detail) == ("missing", True), found.detail


def test_gpus_are_found_by_label_and_equal_toleration(look) -> None:
    equal = {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present"}
    assert look(node_selector={"pool": "gpu"}, tolerations=(equal,))["GPUs"].state == "ok"
    assert look(gpus=0)["GPUs"].state == "note"


def test_what_may_not_be_looked_at_is_a_note_with_whom_to_ask(look, cluster: FakeKube) -> None:
    cluster.answers["/api/v1/nodes"] = 403
    cluster.answers[f"{TEAM}/secrets/keys"] = 403
    found = look()
    for name in ("GPUs", "secret"):
        assert found[name].state == "note"
        assert "administers the cluster" in found[name].remedy


def test_a_secret_that_lacks_a_key_is_named_with_the_key(look, cluster: FakeKube) -> None:
    cluster.answers[f"{TEAM}/secrets/keys"] = {"data": {"AWS_ACCESS_KEY_ID": "YQ=="}}
    assert look()["secret"].detail == "keys lacks AWS_SECRET_ACCESS_KEY"


def test_temporary_keys_are_told_and_the_store_s_certificates_looked_for(
    look, cluster: FakeKube
) -> None:
    cluster.answers[f"{TEAM}/secrets/keys"]["data"]["AWS_SESSION_TOKEN"] = "Yw=="  # noqa: S105
    assert "temporary keys" in look()["secret"].detail
    wanted = parse_certificates("hospital-ca")
    found = look(certificates=wanted)["S3 CA"]
    assert (found.state, found.detail) == ("missing", "hospital-ca does not exist")
    cluster.answers[f"{TEAM}/configmaps/hospital-ca"] = {"data": {"other.crt": "x"}}
    found = look(certificates=wanted)["S3 CA"]
    assert (found.state, found.detail) == ("missing", "hospital-ca has no certificates in ca.crt")
    assert "--from-file=ca.crt=" in found.remedy
    pem = "-----BEGIN CERTIFICATE-----"
    cluster.answers[f"{TEAM}/configmaps/hospital-ca"] = {"data": {"ca.crt": pem}}
    assert look(certificates=wanted)["S3 CA"].state == "ok"


def test_rights_are_asked_for_the_account_of_the_tasks(look, cluster: FakeKube) -> None:
    look()
    assert {b["spec"]["user"] for b in cluster.bodies} == {
        "system:serviceaccount:team:pipeline-runner"
    }
    assert {b["spec"]["resourceAttributes"]["namespace"] for b in cluster.bodies} == {"team"}


def test_machines_need_rights_of_their_own_which_depend_on_the_trainer(
    look, cluster: FakeKube
) -> None:
    assert look()["machines"].detail == "each training has one pod"
    assert "Indexed Job" in look(machines=True)["machines"].detail
    cluster.denied = {"create services", "create trainjobs"}
    found = look(machines=True)["machines"]
    assert (found.state, found.detail) == ("missing", "pipeline-runner may not create services")
    assert "rbac.training: true" in found.remedy
    cluster.denied |= {"get services"}  # asked for when the machines of a killed try are adopted
    assert "get services" in look(machines=True)["machines"].detail
    cluster.answers["/apis/trainer.kubeflow.org/v1alpha1"] = {"resources": []}
    assert "create trainjobs" in look(machines=True)["machines"].detail
    cluster.denied = set()
    assert look(machines=True)["machines"].detail == "a TrainJob"


def test_a_triton_outside_the_cluster_is_asked_itself(look) -> None:
    assert look(triton="grpc://127.0.0.1:1")["Triton"].state == "ok"
    assert look(triton="grpc://gpu.example.org:8001")["Triton"].state == "missing"
    assert look(triton="")["Triton"].state == "note"


def test_a_triton_whose_pods_are_not_ready_is_missing(look, cluster: FakeKube) -> None:
    cluster.answers[SLICES] = {"items": [{"endpoints": [{"conditions": {"ready": False}}]}]}
    assert "no pod is ready" in look()["Triton"].detail
    other = "/apis/discovery.k8s.io/v1/namespaces/serving/endpointslices"
    cluster.answers[other] = {"items": [{"endpoints": [{"conditions": {"ready": True}}]}]}
    assert look(triton="grpc://sam2.serving.svc.cluster.local:8001")["Triton"].state == "ok"


@pytest.mark.parametrize(
    ("told", "state"), [("2.17.3", "ok"), ("2.18.0", "ok"), ("2.14.3", "note"), ("", "note")]
)
def test_a_server_older_than_the_sdk_is_noted(look, fake: FakeKfp, told: str, state: str) -> None:
    fake.version = told
    assert look()["KFP version"].state == state


def test_a_server_with_several_users_needs_a_profile(look, fake: FakeKfp) -> None:
    fake.multi_user = True
    assert "--profile" in look()["KFP profile"].remedy
