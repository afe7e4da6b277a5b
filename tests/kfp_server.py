"""A KFP server's API for tests: it records requests, and answers with kfp_server_api's own models.

Every body is read into the model that the real server's definition names and written again: what
the definition does not know would be lost on the way, and fails the test.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as models

_CODER = models.ApiClient()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class FakeKfp:
    """State of the server. `faults` are used up one per matching request, in order.

    A fault is a status code, `hang` (no answer), `cut` (the connection ends), `page` (HTML, as of a
    login), `empty` (an answer without content), `gateway` (502 with a page that is not UTF-8) or
    `lost` (the request is carried out, its answer is not).
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    faults: list[tuple[str, int | str]] = field(default_factory=list)
    experiments: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, list[Any]] = field(default_factory=dict)
    multi_user: bool = False
    version: str = "2.17.0"
    stopped: threading.Event = field(default_factory=threading.Event)

    def calls(self, method: str, path: str = "") -> list[Request]:
        """Requests of a method whose path has this end."""
        return [r for r in self.requests if r.method == method and r.path.endswith(path)]

    def answer(self, request: Request) -> tuple[int, Any]:
        for pattern, name in _ROUTES:
            found = re.fullmatch(pattern, f"{request.method} {request.path}")
            if found:
                return getattr(self, name)(request, *found.groups())
        return 404, {"message": "no such page"}

    def health(self, _: Request) -> tuple[int, Any]:
        return 200, models.V2beta1GetHealthzResponse(multi_user=self.multi_user)

    def old_health(self, _: Request) -> tuple[int, Any]:
        return 200, {"tag_name": self.version, "commit_sha": "0" * 40}

    def list_experiments(self, request: Request) -> tuple[int, Any]:
        found = [e for e in self.experiments.values() if e.display_name == _named(request)]
        return 200, models.V2beta1ListExperimentsResponse(experiments=found)

    def make_experiment(self, request: Request) -> tuple[int, Any]:
        made = checked(request.body, "V2beta1Experiment")
        if any(e.display_name == made.display_name for e in self.experiments.values()):
            return 409, {"message": "already exists"}
        made.experiment_id = f"experiment-{len(self.experiments) + 1}"
        self.experiments[made.experiment_id] = made
        return 200, made

    def list_runs(self, request: Request) -> tuple[int, Any]:
        found = [
            run
            for run in self.runs.values()
            if run.display_name == _named(request)
            and run.experiment_id == request.query["experiment_id"]
        ]
        return 200, models.V2beta1ListRunsResponse(runs=found)

    def make_run(self, request: Request) -> tuple[int, Any]:
        made = checked(request.body, "V2beta1Run")
        if made.experiment_id not in self.experiments:
            return 404, {"message": "no such experiment"}
        made.run_id, made.state = f"run-{len(self.runs) + 1}", "PENDING"
        self.runs[made.run_id] = made
        return 200, made

    def get_run(self, _: Request, run_id: str) -> tuple[int, Any]:
        if run_id not in self.runs:
            return 404, {"message": f"run {run_id} not found"}
        told = self.answers.get(run_id)
        if told:
            self.runs[run_id] = told.pop(0) if len(told) > 1 else told[0]
        return 200, self.runs[run_id]

    def end_run(self, _: Request, run_id: str) -> tuple[int, Any]:
        if run_id not in self.runs:
            return 404, {"message": f"run {run_id} not found"}
        self.runs[run_id].state = "CANCELING"
        return 200, {}


_ROUTES = (
    (r"GET /apis/v2beta1/healthz", "health"),
    (r"GET /apis/v1beta1/healthz", "old_health"),
    (r"GET /apis/v2beta1/experiments", "list_experiments"),
    (r"POST /apis/v2beta1/experiments", "make_experiment"),
    (r"GET /apis/v2beta1/runs", "list_runs"),
    (r"POST /apis/v2beta1/runs", "make_run"),
    (r"GET /apis/v2beta1/runs/([\w-]+)", "get_run"),
    (r"POST /apis/v2beta1/runs/([\w-]+):terminate", "end_run"),
)


def checked(body: Any, model: str) -> Any:
    """A body as an object of a model of the API; nothing of it may be unknown there."""
    made = _CODER.deserialize(SimpleNamespace(data=json.dumps(body)), model)
    assert _CODER.sanitize_for_serialization(made) == body
    return made


def task(task_id: str, name: str, state: str, message: str = "") -> Any:
    """One task of a run, as the server tells it."""
    error = models.GoogleRpcStatus(message=message) if message else None
    return models.V2beta1PipelineTaskDetail(
        task_id=task_id, display_name=name, state=state, error=error
    )


def run(state: str, *tasks: Any, run_id: str = "run-1", message: str = "") -> Any:
    """A run in some state."""
    return models.V2beta1Run(
        run_id=run_id,
        experiment_id="experiment-1",
        display_name="tiny-0123",
        state=state,
        error=models.GoogleRpcStatus(message=message) if message else None,
        run_details=models.V2beta1RunDetails(task_details=list(tasks)),
    )


def _named(request: Request) -> str:
    (predicate,) = json.loads(request.query["filter"])["predicates"]
    assert (predicate["operation"], predicate["key"]) == (1, "display_name")
    return str(predicate["stringValue"])


@contextmanager
def kfp_server(fake: FakeKfp | None = None) -> Iterator[FakeKfp]:
    """A running server on a free port of this machine."""
    fake = fake or FakeKfp()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(fake: FakeKfp) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            url = urlsplit(self.path)
            request = Request(
                self.command,
                url.path,
                {name: values[0] for name, values in parse_qs(url.query).items()},
                dict(self.headers),
                json.loads(text) if text else None,
            )
            fake.requests.append(request)
            fault = _taken(fake, request)
            if fault == "hang":
                fake.stopped.wait(30)
                return
            if fault == "cut":
                return
            if fault in ("page", "empty"):
                self._send(200, b"<html>Log in</html>" if fault == "page" else b"{}")
                return
            if fault == "gateway":
                self._send(502, "passerelle défaillante".encode("latin-1"))
                return
            status, body = (
                (fault, {"message": "as told by the test"})
                if isinstance(fault, int)
                else fake.answer(request)
            )
            if fault == "lost":
                return
            self._send(status, json.dumps(_CODER.sanitize_for_serialization(body)).encode())

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve  # noqa: N815 - names of http.server

    return Handler


def _taken(fake: FakeKfp, request: Request) -> int | str:
    for index, (target, fault) in enumerate(fake.faults):
        if f"{request.method} {request.path}".endswith(target):
            del fake.faults[index]
            return fault
    return ""
