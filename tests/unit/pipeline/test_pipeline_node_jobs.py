"""Machines of one training: started, adopted, followed to their end and taken away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from api_server import ApiServer, api_server
from kubernetes import client

from sssflow.errors import (
    DataError,
    InternalError,
    InterruptedRun,
    UnavailableError,
    UsageError,
)
from sssflow.pipeline import node_jobs
from sssflow.pipeline.cluster_objects import Cluster
from sssflow.pipeline.config import NodesConfig
from sssflow.pipeline.node_jobs import Pace, run_on_nodes
from sssflow.pipeline.nodes import Order, indexed_job, order

FAST = Pace(poll_s=0.01, outage_s=0.1, removal_s=0.2, telling_s=0.0)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as running:
        yield running


@pytest.fixture
def cluster(server: ApiServer) -> Cluster:
    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{server.server_port}"
    return Cluster(client.ApiClient(configuration), "ns")


def wanted(**changes: Any) -> Order:
    config = NodesConfig(nodes=2, image="x", claim="c", **changes)
    return order(config, "ns", ["python"], 2, "/mnt/sssflow/train/abc", launcher="task")


def at_look(monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], None]) -> list[int]:
    """Nothing is waited for; instead of the first, second, ... wait `acts` happen."""
    todo, looks = list(acts), [0]

    def sleep(seconds: float) -> None:
        looks[0] += 1
        assert looks[0] < 1000, "nothing ends it"
        if todo:
            todo.pop(0)()

    monkeypatch.setattr(node_jobs.time, "sleep", sleep)
    return looks


def nothing() -> None:
    """Nothing happens."""


def pod(name: str, code: int | None = None) -> dict[str, Any]:
    state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
    phase = "Running" if code is None else "Failed"
    status = {"phase": phase, "containerStatuses": [{"state": state}]}
    return {"metadata": {"name": name}, "status": status}


@pytest.mark.parametrize(
    ("knows_trainer", "kind", "made"),
    [
        (False, "auto", ["create Job", "create Service", "delete Job", "delete Service"]),
        (True, "auto", ["create TrainJob", "delete TrainJob"]),
        (True, "job", ["create Job", "create Service", "delete Job", "delete Service"]),
        (False, "trainjob", ["create TrainJob", "delete TrainJob"]),
    ],
)
def test_machines_are_asked_for_followed_and_taken_away(
    knows_trainer, kind, made, server, cluster, tmp_path, monkeypatch
):
    server.knows_trainer = knows_trainer
    resource = "trainjobs" if "TrainJob" in made[0] else "jobs"
    at_look(monkeypatch, nothing, lambda: server.end(resource, "Complete"))
    run_on_nodes(cluster, wanted(kind=kind), tmp_path / "pulse", FAST)
    assert server.calls == made
    assert server.objects == {}


def test_the_pulse_changes_at_every_look(server, cluster, tmp_path, monkeypatch):
    seen = []

    def look() -> None:
        seen.append((tmp_path / "pulse").read_text())
        if len(seen) == 3:
            server.end("jobs", "Complete")

    at_look(monkeypatch, look, look, look)
    run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert len(set(seen)) == 3


def test_a_killed_task_s_next_try_adopts_the_machines_at_work(
    server, cluster, tmp_path, monkeypatch
):
    path = "/apis/batch/v1/namespaces/ns/jobs/" + wanted().name
    server.objects[path] = indexed_job(wanted())
    server.objects[path]["metadata"]["uid"] = "first"
    task = "/api/v1/namespaces/ns/pods/task"
    server.objects[task] = {"metadata": {"name": "task", "uid": "second try"}}
    owners = []

    def look() -> None:
        owners.extend(server.objects[path]["metadata"]["ownerReferences"])
        server.end("jobs", "Complete")

    at_look(monkeypatch, look)
    run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert server.calls == ["patch Job", "create Service", "delete Job", "delete Service"]
    assert owners == [{"apiVersion": "v1", "kind": "Pod", "name": "task", "uid": "second try"}]


@pytest.mark.parametrize("state", ["other", "failed", "going"])
def test_what_cannot_be_adopted_is_taken_away_first(state, server, cluster, tmp_path, monkeypatch):
    path = "/apis/batch/v1/namespaces/ns/jobs/" + wanted().name
    found = indexed_job(wanted(cpu="3") if state == "other" else wanted())
    if state == "failed":
        found["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    if state == "going":
        found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    server.objects[path] = found
    at_look(monkeypatch, lambda: server.end("jobs", "Complete"))
    run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert server.calls[:3] == ["delete Job", "create Job", "create Service"]


def test_the_service_goes_with_the_job_and_the_job_with_the_task(
    server, cluster, tmp_path, monkeypatch
):
    server.objects["/api/v1/namespaces/ns/pods/task"] = {"metadata": {"name": "task", "uid": "t"}}
    owners = {}

    def look() -> None:
        for resource in ("jobs", "services"):
            (found,) = server.of_kind(resource)
            owners[resource] = [each["uid"] for each in found["metadata"]["ownerReferences"]]
        owners["job"] = server.of_kind("jobs")[0]["metadata"]["uid"]
        server.end("jobs", "Complete")

    at_look(monkeypatch, look)
    run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert owners["jobs"] == ["t"]
    assert owners["services"] == [owners["job"]]


def test_lost_machines_are_started_again_so_many_times(server, cluster, tmp_path, monkeypatch):
    server.pods = [pod("a-0", 69), pod("a-1", 137)]
    fail = [lambda: server.end("jobs", "Failed", "BackoffLimitExceeded")] * 9
    at_look(monkeypatch, *fail)
    with pytest.raises(UnavailableError, match="a-0: exit code 69, a-1: exit code 137"):
        run_on_nodes(cluster, wanted(attempts=3), tmp_path / "pulse", FAST)
    assert server.calls.count("create Job") == 3
    assert server.objects == {}


@pytest.mark.parametrize(("code", "kind"), [(64, UsageError), (65, DataError), (70, InternalError)])
def test_what_a_person_must_mend_is_told_with_the_log_and_not_tried_again(
    code, kind, server, cluster, tmp_path, monkeypatch
):
    server.pods = [pod("a-0", 69), pod("a-1", code)]
    server.logs = {"a-1": "first line\nthe reason"}
    at_look(monkeypatch, lambda: server.end("jobs", "Failed", "BackoffLimitExceeded"))
    with pytest.raises(kind, match="the reason") as failed:
        run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert failed.value.where == "a-1"
    assert server.calls.count("create Job") == 1


def test_a_deadline_is_told_by_its_setting(server, cluster, tmp_path, monkeypatch):
    at_look(monkeypatch, lambda: server.end("jobs", "Failed", "DeadlineExceeded"))
    with pytest.raises(UsageError, match="deadline_s"):
        run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)


def test_a_cancelled_task_takes_its_machines_along(server, cluster, tmp_path, monkeypatch):
    def stop() -> None:
        raise InterruptedRun("SIGTERM")

    at_look(monkeypatch, nothing, stop)
    with pytest.raises(InterruptedRun):
        run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert server.objects == {}


def test_a_short_outage_of_the_api_is_sat_out(server, cluster, tmp_path, monkeypatch):
    def away() -> None:
        server.refusals = {"GET jobs": 503}

    def back() -> None:
        server.refusals = {}
        server.end("jobs", "Complete")

    at_look(monkeypatch, away, back)
    run_on_nodes(cluster, wanted(), tmp_path / "pulse", Pace(poll_s=0.0, outage_s=60.0))
    assert server.objects == {}


def test_a_long_outage_leaves_the_machines_for_the_next_try(server, cluster, tmp_path, monkeypatch):
    def away() -> None:
        server.refusals = {"GET jobs": 503}
        threading.Event().wait(0.15)

    at_look(monkeypatch, away)
    with pytest.raises(UnavailableError, match="Kubernetes API"):
        run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert len(server.of_kind("jobs")) == 1


@pytest.mark.parametrize(
    ("status", "kind", "what"),
    [
        (403, UsageError, "rbac.training"),
        (404, UsageError, "pipeline.nodes.kind=job"),
        (409, UnavailableError, "not there after it"),
        (422, InternalError, "refuses"),
        (500, UnavailableError, "500"),
    ],
)
def test_a_refused_object_is_told_by_its_cause(status, kind, what, server, cluster, tmp_path):
    server.refusals = {"POST jobs": status}
    with pytest.raises(kind, match=what):
        run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)


@pytest.mark.parametrize(
    "reason",
    [
        'admission webhook "validator.trainjob" denied the request: runtimeRef: not found',
        "jobs.batch is forbidden: exceeded quota: team, requested: count/jobs.batch=1",
    ],
)
def test_an_object_that_is_not_admitted_is_no_lack_of_rights(reason, server, cluster, tmp_path):
    server.refusals, server.reason = {"POST jobs": 403}, reason
    with pytest.raises(UsageError, match="does not admit") as caught:
        run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert "rbac" not in caught.value.action
    assert caught.value.found.startswith("{")


def test_machines_that_somebody_deleted_are_started_again(server, cluster, tmp_path, monkeypatch):
    at_look(monkeypatch, server.objects.clear, lambda: server.end("jobs", "Complete"))
    run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert server.calls.count("create Job") == 2


def test_why_machines_do_not_start_is_told(server, cluster, tmp_path, monkeypatch, caplog):
    waiting = pod("a-0")
    waiting["status"] = {
        "phase": "Pending",
        "conditions": [{"reason": "Unschedulable", "message": "0/3 nodes have a GPU"}],
    }
    server.pods = [waiting, pod("a-1")]
    at_look(monkeypatch, lambda: server.end("jobs", "Complete"))
    with caplog.at_level("INFO"):
        run_on_nodes(cluster, wanted(), tmp_path / "pulse", FAST)
    assert "1 of 2 machines run" in caplog.text
    assert "a-0: Unschedulable: 0/3 nodes have a GPU" in caplog.text


def test_outside_a_cluster_machines_cannot_be_asked_for(tmp_path: Path):
    config = NodesConfig(nodes=2, image="x", claim="c")
    with pytest.raises(UsageError, match="from within a cluster"):
        node_jobs.train_on_nodes(config, ["python"], 2, tmp_path / "run")
