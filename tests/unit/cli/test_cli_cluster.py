"""`sssflow pipeline submit`, `watch`, `resume`, `cancel` and `doctor` as a user types them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kfp")

from kfp_server import FakeKfp, kfp_server, task
from kfp_server import run as state
from kube_server import kube_server
from s3_server import Server
from sssflow.cli.main import run
from sssflow.storage.places import open_place, push_tree

IMAGE = "registry.example/sssflow@sha256:" + "a" * 64
PHANTOMS = ("--set", "phantoms.patients=5", "--set", "name=tiny")


@pytest.fixture
def fake() -> Iterator[FakeKfp]:
    with kfp_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)


def submit(fake: FakeKfp, *more: str, image: str = IMAGE) -> int:
    where = ("--host", fake.url, "--image", image, "--store", "s3://bucket/store")
    return run(["pipeline", "submit", *where, *more])


def test_a_submission_starts_one_run_and_says_how_to_watch_it(fake, capsys) -> None:
    assert submit(fake, *PHANTOMS, "--gpus", "2", "--toleration", "nvidia.com/gpu") == 0
    (sent,) = fake.calls("POST", "/runs")
    parameters = sent.body["runtime_config"]["parameters"]
    assert json.loads(parameters["config_json"])["phantoms"]["patients"] == 5
    assert (parameters["store_uri"], parameters["source"]) == ("s3://bucket/store", "")
    assert sent.body["display_name"].startswith("tiny-")
    executors = sent.body["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    accelerator = executors["exec-train"]["container"]["resources"]["accelerator"]
    assert accelerator["resourceCount"] == "2"
    told = capsys.readouterr().out
    assert f"next: sssflow pipeline watch run-1 --host {fake.url}" in told
    assert f"{fake.url}/#/runs/details/run-1" in told
    assert "2 x nvidia.com/gpu" in told


@pytest.mark.parametrize(
    ("more", "found"), [((), 2), (("--gpus", "1"), 1), (("--set", "train.processes=1"), 1)]
)
def test_a_training_has_a_process_for_each_of_its_gpus(fake, more, found) -> None:
    assert submit(fake, *PHANTOMS, "--gpus", "2", "--toleration", "nvidia.com/gpu", *more) == 0
    (sent,) = fake.calls("POST", "/runs")
    config = json.loads(sent.body["runtime_config"]["parameters"]["config_json"])
    assert config["train"]["processes"] == found


def test_several_machines_share_the_processes_that_the_experiment_names(fake) -> None:
    image = f"i@sha256:{64 * '0'}"
    nodes = f'{{nodes: 2, image: "{image}", claim: c, claim_path: /claim}}'
    more = ("--set", f"pipeline.nodes={nodes}", "--set", "train.processes=4")
    assert submit(fake, *PHANTOMS, "--gpus", "2", *more) == 0
    (sent,) = fake.calls("POST", "/runs")
    config = json.loads(sent.body["runtime_config"]["parameters"]["config_json"])
    assert [config[part]["processes"] for part in ("warmup", "train")] == [1, 4]
    executors = sent.body["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    asks = {
        name: "accelerator" in made["container"].get("resources", {})
        for name, made in executors.items()
        if name.startswith("exec-train")
    }
    # The headline's task only follows its machines.
    assert asks == {"exec-train": True, "exec-train-2": True, "exec-train-3": False}


def test_a_dry_run_sends_nothing(fake, capsys) -> None:
    assert submit(fake, *PHANTOMS, "--dry-run") == 0
    assert fake.requests == []
    assert "nothing was sent" in capsys.readouterr().out


def test_a_tag_is_refused_before_anything_is_sent(fake, capsys) -> None:
    assert submit(fake, *PHANTOMS, image="sssflow:latest") == 64
    assert fake.requests == []
    assert "by its digest" in capsys.readouterr().err


def test_scans_go_with_the_digest_of_every_file(
    fake: FakeKfp, server: Server, s3_keys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    uri = f"s3://bucket/{tmp_path.name}"
    assert submit(fake, "--data", uri) == 65
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii").write_bytes(b"one")
    tree = push_tree(tmp_path / "scans", open_place(uri))
    where = ("--host", fake.url, "--image", IMAGE, "--data", uri, "--s3-endpoint", "http://store")
    assert run(["pipeline", "submit", *where]) == 0
    (sent,) = fake.calls("POST", "/runs")
    parameters = sent.body["runtime_config"]["parameters"]
    assert parameters["source_digest"] == tree.digest
    assert parameters["store_uri"] == "s3://bucket/sssflow"
    executors = sent.body["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    variables = {e["name"]: e["value"] for e in executors["exec-ingest"]["container"]["env"]}
    assert variables == {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": "http://store"}


def test_a_digest_by_hand_needs_no_store_from_here(fake: FakeKfp) -> None:
    assert submit(fake, "--data", "s3://far/scans", "--data-digest", "f" * 64) == 0
    (sent,) = fake.calls("POST", "/runs")
    assert sent.body["runtime_config"]["parameters"]["source_digest"] == "f" * 64


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ((), "no scans to ingest"),
        (("--data", "/scans"), "data push"),
        (("--data", "s3://[bucket]/scans"), "Not an S3 address"),
        ((*PHANTOMS, "--store", "s3://"), "Not an S3 address"),
        ((*PHANTOMS, "--triton", "grpc://sam2:8001"), "sam.onnx.bundle"),
        ((*PHANTOMS, "--triton", "sam2"), "sam.triton.url"),
        ((*PHANTOMS, "--toleration", "a:Never"), "Not a toleration"),
        ((*PHANTOMS, "--node-selector", "pool"), "KEY=VALUE"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    fake: FakeKfp, capsys, more: tuple[str, ...], hint: str
) -> None:
    assert submit(fake, *more) == 64
    assert fake.requests == []
    assert hint in capsys.readouterr().err


def test_sam_2_on_triton_is_set_in_the_experiment_and_takes_no_gpu(fake: FakeKfp) -> None:
    bundle = ("--set", "sam.onnx.bundle=s3://bucket/sam2")
    assert submit(fake, *PHANTOMS, *bundle, "--triton", "grpc://sam2:8001", "--gpus", "1") == 0
    (sent,) = fake.calls("POST", "/runs")
    sam = json.loads(sent.body["runtime_config"]["parameters"]["config_json"])["sam"]
    assert (sam["backend"], sam["triton"]["url"]) == ("triton", "grpc://sam2:8001")
    executors = sent.body["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    assert "resources" not in executors["exec-sam2-inference"]["container"]


def test_without_a_server_the_exit_code_is_69(fake: FakeKfp, capsys) -> None:
    fake.faults += [("/experiments", 503)] * 9
    assert run(["pipeline", "watch", "run-1", "--host", "localhost"]) == 64
    assert "port-forward" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (state("SUCCEEDED", task("1", "ingest", "SUCCEEDED")), 0),
        (state("FAILED", message="task failed"), 70),
        (state("CANCELED"), 75),
    ],
)
def test_the_exit_code_of_watching_is_the_run_s(fake, capsys, end: Any, code: int) -> None:
    fake.runs["run-1"] = state("PENDING")
    fake.answers["run-1"] = [state("RUNNING"), end]
    where = ("--host", fake.url, "--every-s", "0.1")
    assert run(["pipeline", "watch", "run-1", *where]) == code
    told = capsys.readouterr()
    assert "without a look at pods" in told.out
    assert "run running" in told.err


def test_a_cancelled_run_goes_on_as_a_run_of_its_own(fake: FakeKfp, capsys) -> None:
    assert submit(fake, *PHANTOMS) == 0
    where = ("--host", fake.url)
    assert run(["pipeline", "resume", "run-1", *where]) == 64
    assert "still going on" in capsys.readouterr().err
    assert run(["pipeline", "cancel", "run-1", *where]) == 0
    assert "pipeline resume run-1" in capsys.readouterr().out
    fake.runs["run-1"].state = "CANCELED"
    assert run(["pipeline", "cancel", "run-1", *where]) == 0
    assert "has ended already" in capsys.readouterr().out
    assert run(["pipeline", "resume", "run-1", *where]) == 0
    first, second = (request.body for request in fake.calls("POST", "/runs"))
    assert second["display_name"].startswith(first["display_name"] + "-again-")
    assert {**second, "display_name": ""} == {**first, "display_name": ""}
    assert "watch run-2" in capsys.readouterr().out


def test_the_doctor_tells_every_fault_and_ends_with_69(
    fake: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with kube_server(tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        cluster.answers = {"/version": {"gitVersion": "v1.34.0"}}
        code = run(["pipeline", "doctor", "--host", fake.url, "--namespace", "lab"])
    told = capsys.readouterr().out
    assert code == 69
    assert "missing: namespace, secret, service account, storage class" in told
    assert "kubectl create namespace lab" in told


def test_the_doctor_is_content_with_a_prepared_namespace(
    fake: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with kube_server(tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        cluster.answers = prepared()
        code = run(["pipeline", "doctor", "--host", fake.url, "--secret", ""])
    assert code == 0
    assert "all there" in capsys.readouterr().out


def prepared() -> dict[str, Any]:
    return {
        "/version": {"gitVersion": "v1.34.0"},
        "/api/v1/namespaces/team": {"metadata": {}},
        "/api/v1/namespaces/team/serviceaccounts/pipeline-runner": {},
        "/apis/storage.k8s.io/v1/storageclasses": {"items": []},
    }
