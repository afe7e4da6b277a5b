"""The HTTP transport behind proxies, which rewrite what surrounds an answer."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from sssflow.errors import InternalError, UnavailableError, UsageError
from sssflow.serving import bench, local_triton
from sssflow.serving.client import TransportError, TritonClient
from sssflow.serving.config import ClientConfig
from sssflow.serving.transport import HttpTransport, _channel

VALUES = np.array([0.5, -2.0], np.float32)


class _Proxied(http.server.BaseHTTPRequestHandler):
    """One answer of Triton with the lower-case names that Envoy and HTTP/2 proxies give headers."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if "/closed/" in self.path:
            self._send(b"", {}, status=403)
            return
        if "/login/" in self.path:
            self._send(b"<html>Please log in</html>", {})
            return
        about = {"name": "y", "datatype": "FP32", "shape": [2]}
        about["parameters"] = {"binary_data_size": VALUES.nbytes}
        head = json.dumps({"model_name": "m", "outputs": [about]}).encode()
        self._send(head + VALUES.tobytes(), {"inference-header-content-length": str(len(head))})

    def do_GET(self) -> None:
        """An answer whose pieces come faster than any deadline, and which never ends."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n"
        body = b"\r\n" if "/body/" in self.path else b"X-Slow: "
        with contextlib.suppress(OSError):
            self.wfile.write(head + body)
            while not self.server.ended.wait(0.01):
                self.wfile.write(b"x")

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def proxy() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxied) as server:
        server.ended = threading.Event()
        # What a client that waits for ever would wait for.
        end = threading.Timer(20.0, server.ended.set)
        end.start()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        end.cancel()
        server.ended.set()
        server.shutdown()


def test_an_answer_whose_header_names_a_proxy_wrote_in_lower_case_is_read(proxy: str) -> None:
    transport = HttpTransport(proxy, {})
    found = transport.infer("m", {"x": np.zeros(1, np.float32)}, ["y"], "1", 10.0)
    np.testing.assert_array_equal(found["y"], VALUES)


@pytest.mark.parametrize(("model", "output"), [("login", "y"), ("m", "z")])
def test_an_answer_that_is_none_or_lacks_an_output_is_an_error_that_says_so(
    proxy: str, model: str, output: str
) -> None:
    with (
        TritonClient(ClientConfig(url=f"http://{proxy}", patience_s=0)) as client,
        pytest.raises(InternalError, match=r"cannot be read|lacks the output"),
    ):
        client.infer(model, {"x": np.zeros(1, np.float32)}, [output])


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_trickles_in_is_cut_at_the_deadline(proxy: str, part: str) -> None:
    with pytest.raises(TransportError) as caught:
        HttpTransport(proxy, {}).ready(part, 0.2)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_who_asks_a_closed_interface_is_told_of_the_key_and_of_grpc(proxy: str) -> None:
    config = ClientConfig(url=f"http://{proxy}", patience_s=0)
    with TritonClient(config) as client:
        with pytest.raises(UsageError, match=r"(?s)restricts this interface.*grpc://"):
            client.infer("closed", {"x": np.zeros(1, np.float32)}, ["y"])
        with pytest.raises(UsageError, match="Give the admin key"):
            client.load("closed")


def test_a_server_on_this_machine_is_reached_past_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy would answer for its own address, or refuse: the server never seemed ready."""

    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'nv_inference_count{model="m",version="1"} 7\n')

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        assert local_triton._ok(f"{root}/ready")
        for told in (root, f"{root}/", f"{root}/metrics"):
            assert bench.counters(told, "m")["inferences"] == 7
        server.shutdown()


def test_a_port_that_does_not_speak_http_is_told_and_is_not_ready() -> None:
    """As the port of gRPC answers: bytes of another protocol."""

    class Other(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_address[1]}"
        assert not local_triton._ok(f"{root}/ready")
        with pytest.raises(UnavailableError, match="metrics cannot be read"):
            bench.counters(root, "m")
        server.shutdown()


@pytest.mark.parametrize("told", ["127.0.0.1:8002", "http://[::1", "http://a b/"])
def test_an_address_of_metrics_that_is_none_is_told(told: str) -> None:
    with pytest.raises(UnavailableError, match="metrics cannot be read"):
        bench.counters(told, "m")


@pytest.mark.parametrize(
    ("host", "direct"),
    [("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("triton.example", False)],
)
def test_grpc_to_this_machine_goes_past_the_proxy_too(host: str, *, direct: bool) -> None:
    assert (("grpc.enable_http_proxy", 0) in _channel(f"{host}:8001")) is direct
