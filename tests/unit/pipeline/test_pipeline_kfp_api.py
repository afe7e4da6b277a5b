"""Calls to a KFP server: the bodies, the deadlines, and what each failure becomes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("kfp")
pytest.importorskip("cryptography")

from kfp_server import FakeKfp, checked, kfp_server, run, task
from private_tls import private_server
from s3_server import free_port
from sssflow.errors import SssflowError, UnavailableError, UsageError
from sssflow.pipeline.ir import compiled_pipeline
from sssflow.pipeline.kfp_api import KfpAddress, KfpApi
from sssflow.pipeline.submission import Placement, spec_for

IMAGE = "registry.example/sssflow@sha256:" + "a" * 64


@pytest.fixture
def fake() -> Iterator[FakeKfp]:
    with kfp_server() as running:
        yield running


def api(fake: FakeKfp, **settings: Any) -> KfpApi:
    options: dict[str, Any] = {"timeout_s": 5, "attempts": 3, **settings}
    return KfpApi(KfpAddress(fake.url, **options), sleep=lambda _: None)


def create(server: KfpApi, name: str = "tiny-1") -> str:
    spec = {"pipeline_spec": {"pipelineInfo": {"name": "p"}}, "platform_spec": {}}
    experiment = server.experiment("sssflow")
    return server.create(name, spec, {"source": "s3://b/x"}, experiment_id=experiment)


def test_a_submission_sends_what_kfp_s_own_client_sends(fake: FakeKfp, tmp_path: Path) -> None:
    import kfp

    spec = spec_for(compiled_pipeline(), Placement(IMAGE, gpus=2, memory="8Gi"))
    parameters = {"config_json": "{}", "store_uri": "s3://b/s"}
    server = api(fake)
    ours = server.create("a", spec, parameters, experiment_id=server.experiment("sssflow"))
    package = tmp_path / "submitted.yaml"
    package.write_text(
        yaml.safe_dump_all([spec["pipeline_spec"], spec["platform_spec"]]), encoding="utf-8"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = kfp.Client(host=fake.url, namespace="")
        client.create_run_from_pipeline_package(
            str(package), arguments=parameters, run_name="a", experiment_name="sssflow"
        )
    mine, theirs = (request.body for request in fake.calls("POST", "/runs"))
    assert {k: v for k, v in mine.items() if k != "description"} == theirs
    assert fake.runs[ours].runtime_config.parameters == parameters
    assert len(fake.experiments) == 1


def test_an_experiment_is_made_once_and_belongs_to_the_profile(fake: FakeKfp) -> None:
    server = api(fake, namespace="team-a")
    assert server.experiment("sssflow") == server.experiment("sssflow") == "experiment-1"
    (made,) = fake.calls("POST", "/experiments")
    assert made.body == {"display_name": "sssflow", "namespace": "team-a"}
    assert {r.query["namespace"] for r in fake.calls("GET", "/experiments")} == {"team-a"}


def test_a_run_whose_answer_was_lost_is_found_and_not_started_twice(fake: FakeKfp) -> None:
    fake.faults.append(("POST /apis/v2beta1/runs", "lost"))
    assert create(api(fake)) == "run-1"
    assert len(fake.calls("POST", "/runs")) == 1
    assert list(fake.runs) == ["run-1"]


@pytest.mark.parametrize("fault", [500, 503, 429, "cut", "gateway"])
def test_a_failure_that_passes_is_tried_again(fake: FakeKfp, fault: int | str) -> None:
    fake.faults += [("POST /apis/v2beta1/runs", fault), ("GET /apis/v2beta1/runs", fault)]
    assert create(api(fake)) == "run-1"
    assert list(fake.runs) == ["run-1"]


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (400, UsageError, "as told by the test"),
        (401, UsageError, "--token-file"),
        (403, UsageError, "--profile"),
        (404, UsageError, "Check the ID"),
        (409, UsageError, "another name"),
        (500, UnavailableError, "ml-pipeline"),
    ],
)
def test_a_refusal_says_what_to_do(
    fake: FakeKfp, status: int, kind: type[SssflowError], hint: str
) -> None:
    fake.runs["run-1"] = run("RUNNING")
    fake.faults += [("/runs/run-1", status)] * 3
    with pytest.raises(kind) as caught:
        api(fake).run("run-1")
    assert hint in caught.value.describe()
    assert f"HTTP {status}" in caught.value.found
    assert len(fake.calls("GET", "/runs/run-1")) == (3 if status >= 500 else 1)


def test_a_server_that_hangs_is_left_after_the_deadline(fake: FakeKfp) -> None:
    fake.faults += [("/healthz", "hang")] * 2
    with pytest.raises(UnavailableError) as caught:
        api(fake, timeout_s=1, attempts=2).is_multi_user()
    assert caught.value.exit_code == 69
    assert "gave no answer" in caught.value.what
    assert len(fake.calls("GET", "/healthz")) == 2


def test_a_server_that_is_not_there_is_unavailable() -> None:
    server = KfpApi(
        KfpAddress(f"http://127.0.0.1:{free_port()}", timeout_s=5, attempts=2),
        sleep=lambda _: None,
    )
    with pytest.raises(UnavailableError, match="pipeline doctor"):
        server.is_multi_user()


def test_the_token_is_read_for_every_call_and_never_told(fake: FakeKfp, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first-secret\n")
    server = api(fake, token_file=token)
    server.is_multi_user()
    token.write_text("second-secret\n")
    fake.faults.append(("/healthz", 401))
    with pytest.raises(UsageError) as caught:
        server.is_multi_user()
    sent = [r.headers.get("authorization") for r in fake.calls("GET", "/healthz")]
    assert sent == ["Bearer first-secret", "Bearer second-secret"]
    assert "secret" not in caught.value.describe()
    token.unlink()
    with pytest.raises(UsageError, match="token cannot be read"):
        server.is_multi_user()


@pytest.mark.parametrize("text", ["secret-1\nsecret-2\n", "Bearer secret", "", "s\u00e9cret\u2026"])
def test_a_file_that_holds_no_token_is_named_and_not_told(
    fake: FakeKfp, tmp_path: Path, text: str
) -> None:
    token = tmp_path / "token"
    token.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="no bearer token") as caught:
        api(fake, token_file=token).is_multi_user()
    assert caught.value.where == str(token)
    assert "cret" not in caught.value.describe()
    assert fake.requests == []


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_certificate_is_trusted_if_its_authority_is_named_and_else_told(tmp_path: Path) -> None:
    with private_server(tmp_path, Healthy) as (url, certificate):
        for ca_file in (None, tmp_path / "nowhere.pem", certificate.with_name("key.pem"), tmp_path):
            with pytest.raises(UsageError, match="certificate is not trusted") as caught:
                KfpApi(KfpAddress(url, ca_file=ca_file)).is_multi_user()
            assert "--ca-file" in caught.value.action
        assert KfpApi(KfpAddress(url, ca_file=certificate)).is_multi_user() is False


def test_https_to_a_server_without_it_is_told_as_that(fake: FakeKfp) -> None:
    server = KfpApi(KfpAddress(fake.url.replace("http:", "https:")))
    with pytest.raises(UsageError, match="does not speak HTTPS"):
        server.is_multi_user()


def test_a_run_is_told_with_its_tasks(fake: FakeKfp) -> None:
    fake.runs["run-1"] = run("FAILED", task("1", "ingest", "FAILED", "oh"), message="bad")
    told = api(fake).run("run-1")
    assert (told.state, told.message, told.ended) == ("FAILED", "bad", True)
    (only,) = told.tasks
    assert (only.name, only.state, only.message) == ("ingest", "FAILED", "oh")


def test_a_run_is_made_again_from_what_the_server_kept(fake: FakeKfp) -> None:
    server = api(fake)
    first = create(server)
    fake.runs[first].state = "FAILED"
    second = server.create_again(server.run(first), "tiny-1-again-1")
    bodies = [request.body for request in fake.calls("POST", "/runs")]
    assert {**bodies[0], "display_name": "tiny-1-again-1"} == bodies[1]
    assert second == "run-2"
    fake.runs["run-3"] = run("FAILED", run_id="run-3")
    with pytest.raises(UsageError, match="Submit it once more"):
        server.create_again(server.run("run-3"), "x")


def test_a_run_is_terminated(fake: FakeKfp) -> None:
    server = api(fake)
    run_id = create(server)
    server.terminate(run_id)
    assert server.run(run_id).state == "CANCELING"
    assert not server.run(run_id).ended


def test_the_version_is_told_or_unknown(fake: FakeKfp) -> None:
    assert api(fake).version() == "2.17.0"
    fake.faults += [("v1beta1/healthz", 404)]
    assert api(fake).version() == ""


def test_an_address_needs_its_scheme() -> None:
    with pytest.raises(UsageError, match="port-forward"):
        KfpAddress("127.0.0.1:8888")


def test_the_fake_server_refuses_a_body_that_the_definition_does_not_know() -> None:
    with pytest.raises(AssertionError):
        checked({"display_name": "x", "surprise": 1}, "V2beta1Run")


@pytest.mark.parametrize("fault", ["page", "empty"])
def test_what_is_no_answer_of_kfp_is_never_taken_for_one(fake: FakeKfp, fault: str) -> None:
    server = api(fake)
    fake.runs["run-1"] = run("RUNNING")
    fake.faults += [("/runs/run-1", fault), ("POST /apis/v2beta1/experiments", fault)]
    for call in (lambda: server.run("run-1"), lambda: server.experiment("sssflow")):
        with pytest.raises(UsageError, match="not one of a KFP server") as caught:
            call()
        assert "--token-file" in caught.value.action
    fake.faults.append(("v2beta1/healthz", "page"))
    with pytest.raises(UsageError, match="Log in"):
        server.is_multi_user()
