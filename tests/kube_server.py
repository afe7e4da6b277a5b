"""A Kubernetes API for tests: paths and what they answer, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class FakeKube:
    """`answers` maps a path, with its query if need be, to JSON, text or a status code."""

    kubeconfig: Path
    answers: dict[str, Any] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    bodies: list[Any] = field(default_factory=list)

    def answer(self, path: str, query: str, body: Any) -> Any:
        if path.endswith("/subjectaccessreviews"):
            self.bodies.append(body)
            asked = body["spec"]["resourceAttributes"]
            words = f"{asked['verb']} {asked['resource']}"
            return {"status": {"allowed": words not in self.denied}}
        return self.answers.get(f"{path}?{query}", self.answers.get(path, 404))


@contextmanager
def kube_server(folder: Path, namespace: str = "team") -> Iterator[FakeKube]:
    """A running API, and a kubeconfig in `folder` whose current context is `namespace`."""
    fake = FakeKube(folder / "kubeconfig")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    url = f"http://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": namespace}}
        ],
    }
    fake.kubeconfig.write_text(json.dumps(config), encoding="utf-8")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(fake: FakeKube) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _serve(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            body = json.loads(text) if text else None
            told = fake.answer(url.path, unquote(url.query), body)
            status = told if isinstance(told, int) else 200
            data = told if isinstance(told, str) else json.dumps({} if status != 200 else told)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data.encode())))
            self.end_headers()
            self.wfile.write(data.encode())

        do_GET = do_POST = _serve  # noqa: N815 - names of http.server

    return Handler
