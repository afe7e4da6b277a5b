"""What a cluster is asked for when one training takes several machines."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("kubernetes")

from tests.charts.charts_pod_security import hardening_gaps, violations
from tests.charts.charts_schemas import problems

from sssflow.errors import UsageError
from sssflow.pipeline.config import NodesConfig
from sssflow.pipeline.nodes import (
    MADE_FROM,
    Order,
    headless_service,
    indexed_job,
    order,
    train_job,
)

IMAGE = "registry.example/pipeline@sha256:" + "0" * 64
FOLDER = "/mnt/sssflow/store/train/abc"


def wanted(**changes: Any) -> Order:
    settings = {"nodes": 2, "image": IMAGE, "claim": "checkpoints", **changes}
    return order(NodesConfig(**settings), "segmentation", ["python", "x"], 8, FOLDER)


FULL = {
    "node_selector": {"gpu": "h200"},
    "tolerations": [{"key": "nvidia.com/gpu"}, {"key": "a", "operator": "Equal", "value": "b"}],
    "queue": "training",
    "pull_secret": "mirror",
}


@pytest.mark.parametrize("changes", [{}, FULL, {"gpu_type": ""}], ids=["least", "full", "cpu"])
@pytest.mark.parametrize("make", [train_job, indexed_job, headless_service])
def test_every_object_is_one_that_kubernetes_accepts(make, changes):
    assert problems(make(wanted(**changes))) == []


def test_the_schemas_see_an_unknown_field_of_a_train_job():
    made = train_job(wanted())
    made["spec"]["podTemplateOverrides"] = []  # Trainer 2.1's name
    made["spec"]["trainer"]["numNodes"] = "2"
    assert problems(made) == [
        "TrainJob.spec.trainer.numNodes: str instead of integer",
        "TrainJob.spec.podTemplateOverrides: unknown field",
    ]


def pods_of(made: dict[str, Any]) -> dict[str, Any]:
    if made["kind"] == "Job":
        return made["spec"]["template"]
    (patch,) = made["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]


def test_the_pods_of_a_job_are_restricted():
    pod = pods_of(indexed_job(wanted()))["spec"]
    assert violations(pod) == []
    assert hardening_gaps(pod) == []


@pytest.mark.parametrize("make", [train_job, indexed_job])
def test_the_pods_of_both_kinds_have_the_same_rights_places_and_volumes(make):
    template = pods_of(make(wanted(**FULL)))
    pod, (container,) = template["spec"], template["spec"]["containers"]
    assert template["metadata"]["labels"] == {"sssflow/run": "true"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["nodeSelector"] == {"gpu": "h200"}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "a", "operator": "Equal", "value": "b"},
    ]
    assert pod["imagePullSecrets"] == [{"name": "mirror"}]
    assert "imagePullSecrets" not in pods_of(make(wanted()))["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {"claim", "shared-memory", "scratch"}
    assert mounts["claim"] == "/mnt/sssflow"
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)


def test_eight_processes_on_two_machines_ask_for_four_gpus_each():
    expected = {"cpu": "2", "memory": "16Gi", "nvidia.com/gpu": "4"}
    trainer = train_job(wanted())["spec"]["trainer"]
    (container,) = pods_of(indexed_job(wanted()))["spec"]["containers"]
    assert trainer["resourcesPerNode"]["requests"] == expected
    assert container["resources"]["requests"] == expected
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)


def test_machines_of_a_job_find_machine_0_by_the_service_s_name():
    made, service = indexed_job(wanted()), headless_service(wanted())
    name = made["metadata"]["name"]
    pod = pods_of(made)["spec"]
    told = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    assert pod["subdomain"] == service["metadata"]["name"] == name
    assert told["PET_MASTER_ADDR"] == f"{name}-0.{name}"
    assert told["PET_NNODES"] == "2"
    assert int(told["PET_MASTER_PORT"]) == service["spec"]["ports"][0]["port"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    # Kubernetes makes host names of at most 63 letters from the Job's name and the number.
    assert len(name) + len("-63") <= 63


def test_trainer_sets_its_own_variables_and_refuses_ours():
    told = [each["name"] for each in train_job(wanted())["spec"]["trainer"]["env"]]
    assert not [name for name in told if name.startswith("PET_")]


def test_the_queue_gets_the_work_and_not_the_service():
    label = "kueue.x-k8s.io/queue-name"
    queued = wanted(**FULL)
    assert train_job(queued)["metadata"]["labels"][label] == "training"
    assert indexed_job(queued)["metadata"]["labels"][label] == "training"
    assert label not in headless_service(queued)["metadata"]["labels"]


def test_equal_orders_have_equal_names_and_marks_and_others_do_not():
    first, again, other = indexed_job(wanted()), indexed_job(wanted()), indexed_job(wanted(cpu="3"))
    assert first == again
    assert other["metadata"]["name"] == first["metadata"]["name"]
    marks = [made["metadata"]["annotations"][MADE_FROM] for made in (first, other)]
    assert marks[0] != marks[1]


def test_processes_that_the_machines_cannot_share_are_refused():
    with pytest.raises(UsageError, match="cannot share"):
        wanted(nodes=3)


@pytest.mark.parametrize("folder", ["/srv/store/train/abc", "/mnt/sssflow2/x"])
def test_a_folder_that_is_not_on_the_claim_is_refused(folder):
    config = NodesConfig(nodes=2, image=IMAGE, claim="checkpoints")
    with pytest.raises(UsageError, match="all of them see"):
        order(config, "segmentation", ["x"], 2, folder)
