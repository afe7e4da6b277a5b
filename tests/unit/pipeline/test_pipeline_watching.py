"""Following a run: what is told, through which outages, and what its end means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kfp")

from kfp_server import FakeKfp, kfp_server, run, task
from kube_server import FakeKube, kube_server
from sssflow.errors import DataError, InternalError, InterruptedRun, UnavailableError, UsageError
from sssflow.pipeline.ir import compiled_pipeline
from sssflow.pipeline.kfp_api import KfpAddress, KfpApi
from sssflow.pipeline.kube import Kube, reason_in
from sssflow.pipeline.watching import Watcher, task_names

PODS = "/api/v1/namespaces/team/pods"


@pytest.fixture
def fake() -> Iterator[FakeKfp]:
    with kfp_server() as running:
        yield running


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKube]:
    with kube_server(tmp_path) as running:
        yield running


def kube(cluster: FakeKube) -> Kube:
    return Kube(kubeconfig=str(cluster.kubeconfig))


@pytest.fixture
def watcher(fake: FakeKfp) -> Callable[..., tuple[Watcher, list[str]]]:
    def made(states: list[Any], **settings: Any) -> tuple[Watcher, list[str]]:
        fake.runs["run-1"] = states[0]
        fake.answers["run-1"] = states
        said: list[str] = []
        api = KfpApi(KfpAddress(fake.url, timeout_s=5, attempts=1), sleep=lambda _: None)
        options: dict[str, Any] = {"sleep": lambda _: None, **settings}
        return Watcher(api, said.append, **options), said

    return made


def test_every_change_is_told_once_with_the_names_that_people_know(watcher) -> None:
    running = run(
        "RUNNING",
        task("0", "root", "RUNNING"),
        task("1", "train", "RUNNING"),
        task("2", "train-driver", "SUCCEEDED"),
        task("3", "executor", "RUNNING"),
    )
    ended = run("SUCCEEDED", task("1", "train", "SUCCEEDED"))
    names = task_names(compiled_pipeline())
    watch, said = watcher([run("PENDING"), running, running, ended], names=names)
    assert watch.follow("run-1").state == "SUCCEEDED"
    assert said == [
        "run pending",
        "run running",
        "train-warmup: running",
        "run succeeded",
        "train-warmup: succeeded",
    ]


def test_a_cancelled_run_is_resumable(watcher) -> None:
    watch, _ = watcher([run("CANCELING"), run("CANCELED")])
    with pytest.raises(InterruptedRun, match="pipeline resume run-1") as caught:
        watch.follow("run-1")
    assert caught.value.exit_code == 75


def test_an_outage_of_the_server_does_not_end_the_watching(watcher, fake: FakeKfp) -> None:
    fake.faults += [("/runs/run-1", 503), ("/runs/run-1", "cut")]
    watch, said = watcher([run("RUNNING"), run("SUCCEEDED")])
    watch.follow("run-1")
    assert [line.partition(":")[0] for line in said] == [
        *["the server is away, and is asked again"] * 2,
        "run running",
        "run succeeded",
    ]


def test_an_outage_beyond_patience_ends_it_as_unavailable(watcher, fake: FakeKfp) -> None:
    fake.faults += [("/runs/run-1", 503)] * 4
    clock = iter(range(0, 1000, 100))
    watch, _ = watcher([run("RUNNING")], patience_s=250, clock=lambda: float(next(clock)))
    with pytest.raises(UnavailableError):
        watch.follow("run-1")
    assert len(fake.calls("GET", "/runs/run-1")) == 3


def test_a_run_that_does_not_exist_is_refused_at_once(watcher) -> None:
    watch, _ = watcher([run("RUNNING")])
    with pytest.raises(UsageError, match="Check the ID"):
        watch.follow("run-9")


def test_a_failure_without_a_look_at_pods_tells_how_to_look(watcher) -> None:
    watch, _ = watcher([run("FAILED", task("1", "ingest", "FAILED", "exit status 1"))])
    with pytest.raises(InternalError) as caught:
        watch.follow("run-1")
    told = caught.value.describe()
    assert "The run failed: exit status 1" in told
    assert "kubectl logs -l pipeline/runid=run-1 -c main" in told
    assert "1 failed" in told


def pod(name: str, phase: str, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"phase": phase, **status},
    }


def test_a_failure_has_the_kind_and_the_reason_that_the_task_s_log_tells(
    watcher, cluster: FakeKube
) -> None:
    log = (
        "step 1\n[KFP] ERROR data error (exit 65): The scan is broken.\n  where: scan-17\n"
        "  next: Mend it.\nF1121 main.go: failed to execute component: exit status 65\n"
    )
    pods = [pod("driver", "Succeeded"), pod("lost", "Failed"), pod("ingest", "Failed")]
    cluster.answers[f"{PODS}?labelSelector=pipeline/runid=run-1"] = {"items": pods}
    cluster.answers[f"{PODS}/ingest/log"] = log
    watch, _ = watcher([run("FAILED", message="task failed")], kube=kube(cluster))
    with pytest.raises(DataError) as caught:
        watch.follow("run-1")
    told = caught.value.describe()
    assert "The run failed: The scan is broken.\n  where: scan-17\n  next: Mend it." in told
    assert "kubectl -n team logs ingest -c main" in told
    assert "main.go" not in told


def test_the_reason_is_that_of_the_last_try_of_the_task_that_was_not_done(
    watcher, cluster: FakeKube
) -> None:
    """A try that another one made good is no reason, nor is the first of several."""

    def tried(name: str, node: str, phase: str, said: str = "") -> dict[str, Any]:
        cluster.answers[f"{PODS}/{name}/log"] = said
        found = pod(name, phase)
        found["metadata"]["annotations"] = {"workflows.argoproj.io/node-name": f"run-1.root{node}"}
        return found

    slow, broken = "x (exit 69): The store was slow.\n", "y (exit 65): The scan is broken.\n"
    pods = [
        tried("a0", ".ingest.executor(0)", "Failed", slow),
        tried("a1", ".ingest.executor(1)", "Succeeded"),
        tried("b0", ".loop(0:0).masks.executor(0).main", "Failed", slow),
        tried("c0", ".loop(1:1).masks.executor(0).main", "Succeeded"),
        tried("b1", ".loop(0:0).masks.executor(1).main", "Failed", broken),
    ]
    cluster.answers[f"{PODS}?labelSelector=pipeline/runid=run-1"] = {"items": pods}
    watch, _ = watcher([run("FAILED", message="task failed")], kube=kube(cluster))
    with pytest.raises(DataError, match="The scan is broken"):
        watch.follow("run-1")


def test_a_pod_that_cannot_start_is_told_once(watcher, cluster: FakeKube) -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    unfit = {"type": "PodScheduled", "reason": "Unschedulable", "message": "0/1 nodes"}
    pods = [
        pod("a", "Pending", containerStatuses=[{"state": {"waiting": waiting}}]),
        pod("b", "Pending", conditions=[unfit]),
        pod("c", "Pending", containerStatuses=[{"state": {"waiting": {"reason": "Init"}}}]),
    ]
    cluster.answers[PODS] = {"items": pods}
    states = [run("RUNNING"), run("RUNNING"), run("SUCCEEDED")]
    watch, said = watcher(states, kube=kube(cluster))
    watch.follow("run-1")
    assert [line for line in said if "cannot start" in line] == [
        "warning: pod a cannot start: ImagePullBackOff: no such image",
        "warning: pod b cannot start: Unschedulable: 0/1 nodes",
    ]


def test_a_cluster_that_may_not_be_looked_at_does_not_end_the_watching(
    watcher, cluster: FakeKube
) -> None:
    cluster.answers[PODS] = 403
    watch, said = watcher([run("RUNNING"), run("FAILED", message="m")], kube=kube(cluster))
    with pytest.raises(InternalError, match="The run failed: m"):
        watch.follow("run-1")
    assert said == ["run running", "run failed"]


def test_the_last_reason_of_a_log_counts() -> None:
    log = "x (exit 69): The store is slow.\nretry\ny (exit 75): Stopped.\n  where: here\nend"
    assert reason_in(log) == (75, "Stopped.\n  where: here")
    assert reason_in("killed") is None
