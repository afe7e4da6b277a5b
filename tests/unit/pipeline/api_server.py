"""A loopback API server that keeps objects as Kubernetes would, with a hand on their fate."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Object = dict[str, Any]


class ApiServer(ThreadingHTTPServer):
    """Objects by path; `calls` are the changes that were asked for.

    `refusals` maps "METHOD resource" to a status with which it is answered, `reason` is what the
    answer says. With `knows_trainer` the group of Kubeflow Trainer is there.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Object] = {}
        self.pods: list[Object] = []
        self.logs: dict[str, str] = {}
        self.calls: list[str] = []
        self.refusals: dict[str, int] = {}
        self.reason = "no"
        self.knows_trainer = False
        self.made = 0

    def of_kind(self, resource: str) -> list[Object]:
        """Objects of one resource, for example `jobs`."""
        return [found for path, found in self.objects.items() if f"/{resource}/" in path]

    def end(self, resource: str, kind: str, reason: str = "") -> None:
        """Let the only object of a resource have ended."""
        (found,) = self.of_kind(resource)
        condition = {"type": kind, "status": "True", "reason": reason, "message": "told"}
        found["status"] = {"conditions": [condition]}


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        resource, objects = path.rsplit("/", 1)[-1], self.server.objects
        if self._refused():
            return
        if path == "/apis/trainer.kubeflow.org/v1alpha1":
            self._answer(200 if self.server.knows_trainer else 404, {"kind": "APIResourceList"})
        elif resource == "log":
            self._send(200, self.server.logs[path.split("/")[-2]].encode())
        elif resource == "pods":
            assert query.startswith("labelSelector=")
            self._answer(200, {"kind": "PodList", "items": self.server.pods})
        else:
            self._answer(200 if path in objects else 404, objects.get(path, {}))

    def do_POST(self) -> None:
        made = self._body()
        path = f"{self.path}/{made['metadata']['name']}"
        if self._refused():
            return
        self.server.calls.append(f"create {made['kind']}")
        if path in self.server.objects:
            self._answer(409, {})
            return
        self.server.made += 1
        made["metadata"]["uid"] = f"uid-{self.server.made}"
        self.server.objects[path] = made
        self._answer(201, made)

    def do_PATCH(self) -> None:
        body = self._body()
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        found = self.server.objects[self.path]
        self.server.calls.append(f"patch {found['kind']}")
        found["metadata"] |= body["metadata"]
        self._answer(200, found)

    def do_DELETE(self) -> None:
        assert self._body() == {"propagationPolicy": "Foreground"}
        found = self.server.objects.pop(self.path, None)
        if found is not None:
            self.server.calls.append(f"delete {found['kind']}")
        self._answer(404 if found is None else 200, {})

    def _refused(self) -> bool:
        resource = self.path.partition("?")[0].split("/")
        for key, status in self.server.refusals.items():
            method, name = key.split()
            if method == self.command and name in resource:
                self._answer(status, {"message": self.server.reason})
                return True
        return False

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, status: int, body: Object) -> None:
        self._send(status, json.dumps(body).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """A running server."""
    server = ApiServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
