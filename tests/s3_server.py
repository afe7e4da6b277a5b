"""A real S3 server for tests, and a proxy in front of it that does what bad networks do."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

ACCESS_KEY, SECRET_KEY = "test-access", "test-secret-4711"
REGION = "us-east-1"
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


@dataclass(frozen=True)
class Server:
    """A running S3 server: its address, and the folder that holds its buckets."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def s3_server(binary: Path, folder: Path) -> Iterator[Server]:
    """A versitygw over `folder/data`, with its bucket `bucket`."""
    data = folder / "data"
    data.mkdir(parents=True)
    port = free_port()
    command = [str(binary), "--quiet", "--port", f"127.0.0.1:{port}", "--region", REGION]
    command += ["--access", ACCESS_KEY, "--secret", SECRET_KEY]
    command += ["posix", "--sidecar", str(folder / "meta"), str(data)]
    (folder / "meta").mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(port, process, folder / "log")
            server = Server(port, data)
            raw_client(server.url).create_bucket(Bucket="bucket")
            yield server
        finally:
            process.terminate()
            process.wait(20)


def raw_client(url: str) -> Any:
    """A plain boto3 client, to look at the store without our own code."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(400):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the S3 server did not start")


@dataclass
class Faults:
    """Which answers are spoilt. Draws are seeded; `counts` says what was done."""

    share: float
    kinds: tuple[str, ...] = ("error", "reset", "cut", "slow")
    generator: random.Random = field(default_factory=lambda: random.Random(7))
    counts: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self) -> str:
        with self.lock:
            drawn = self.generator.random() < self.share
            kind = self.generator.choice(self.kinds) if drawn else "none"
            self.counts[kind] = self.counts.get(kind, 0) + 1
            return kind


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: Server
    faults: Faults

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.faults.draw()
        if kind == "error":
            self._send(503, [], b"<Error><Code>SlowDown</Code></Error>", "none")
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream.port, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP]
        connection.close()
        if kind == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
            return
        self._send(answer.status, headers, data, kind)

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, kind: str) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD" or not data:
            return
        if kind == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        half = len(data) // 2
        if kind == "cut":
            self.wfile.write(data[:half])
            self.close_connection = True
            return
        self.wfile.write(data[:half])
        self.wfile.flush()
        if kind == "slow":
            time.sleep(0.02)
        self.wfile.write(data[half:])

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def fault_proxy(upstream: Server, faults: Faults) -> Iterator[str]:
    """URL of a proxy that passes every request on and spoils some of the answers.

    error: 503 without asking; reset: the connection is reset after the store has acted;
    cut: half of the body; flip: one bit of the body; slow: a pause in the middle of the body.
    """
    handler = type("Handler", (_Handler,), {"upstream": upstream, "faults": faults})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
