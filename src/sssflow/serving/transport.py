"""The two ways to Triton: gRPC, and HTTP with binary tensors."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sssflow.errors import UsageError
from sssflow.serving.client import Arrays, TransportError
from sssflow.serving.direct import is_this_machine
from sssflow.serving.pbtxt import WIRE_TYPES

_LARGEST_MESSAGE = 2**31 - 1
_CHANNEL = [
    # Given options replace the library's own, and with them its limits: both are named again.
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.primary_user_agent", "sssflow"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.lb_policy_name", "round_robin"),
    # A lost connection makes it ask for the addresses again; by default not within 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.enable_retries", 0),
]
_HTTP_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# A server that ends takes its models away, the inner ones of a request under way too. Another
# server, or the next, has them.
_ENDING = ("has no available versions", "server not ready", "server is stopping")


def _channel(address: str) -> list[tuple[str, object]]:
    """Options of a channel; none to this machine goes through the proxy of `http_proxy`."""
    here = is_this_machine(address.rpartition(":")[0])
    return [*_CHANNEL, *([("grpc.enable_http_proxy", 0)] if here else [])]


class GrpcTransport:
    """gRPC; one channel for all threads."""

    def __init__(self, address: str, headers: Mapping[str, str]) -> None:
        """See `Transport`.

        Args:
            address: host:port.
            headers: Sent with every control call.
        """
        self._module = _triton("tritonclient.grpc")
        self._client = self._module.InferenceServerClient(address, channel_args=_channel(address))
        # The header of a restricted interface has this prefix in gRPC.
        self._headers = {f"triton-grpc-protocol-{key}": value for key, value in headers.items()}

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        request_id: str,
        deadline_s: float,
    ) -> Arrays:
        """See `Transport.infer`."""
        wanted = [self._module.InferRequestedOutput(name) for name in outputs]
        answer = self._call(
            self._client.infer,
            model,
            _tensors(self._module, inputs),
            outputs=wanted,
            request_id=request_id,
            client_timeout=deadline_s,
        )
        return {name: _output(answer, name) for name in outputs}

    def ready(self, model: str, deadline_s: float) -> bool:
        """See `Transport.ready`; an empty name asks for the server."""
        if not model:
            return bool(self._call(self._client.is_server_live, client_timeout=deadline_s))
        return bool(self._call(self._client.is_model_ready, model, client_timeout=deadline_s))

    def control(self, verb: str, model: str, deadline_s: float) -> None:
        """See `Transport.control`."""
        call = self._client.load_model if verb == "load" else self._client.unload_model
        self._call(call, model, headers=self._headers, client_timeout=deadline_s)

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()

    def _call(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return call(*args, **kwargs)
        except InferenceServerException as error:
            message = str(error.message())
            code = str(error.status() or "UNKNOWN").removeprefix("StatusCode.")
            raise TransportError(_meant(code, message), message) from None


class HttpTransport:
    """HTTP with binary tensors; a connection per call, so that threads share nothing."""

    def __init__(self, address: str, headers: Mapping[str, str]) -> None:
        """See `GrpcTransport`."""
        self._module = _triton("tritonclient.http")
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._headers = dict(headers)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        request_id: str,
        deadline_s: float,
    ) -> Arrays:
        """See `Transport.infer`."""
        kind = self._module.InferenceServerClient
        body, header_length = kind.generate_request_body(
            _tensors(self._module, inputs),
            outputs=[self._module.InferRequestedOutput(n, binary_data=True) for n in outputs],
            request_id=request_id,
        )
        headers = {} if header_length is None else {_LENGTH: str(header_length)}
        data, given = self._post(f"/v2/models/{model}/infer", body, headers, deadline_s)
        length = given.get(_LENGTH)
        try:
            answer = kind.parse_response_body(
                data, header_length=None if length is None else int(length)
            )
            return {name: np.array(_output(answer, name)) for name in outputs}
        # The library has no error of its own for a body that is no answer, as a login page is.
        except Exception as error:
            raise TransportError("INTERNAL", f"the answer cannot be read: {error}") from None

    def ready(self, model: str, deadline_s: float) -> bool:
        """See `Transport.ready`."""
        path = f"/v2/models/{model}/ready" if model else "/v2/health/live"
        try:
            self._ask("GET", path, b"", {}, deadline_s)
        except TransportError as error:
            if error.code in {"INVALID_ARGUMENT", "NOT_FOUND"}:
                return False
            raise
        return True

    def control(self, verb: str, model: str, deadline_s: float) -> None:
        """See `Transport.control`."""
        path = f"/v2/repository/models/{model}/{verb}"
        self._post(path, b"{}", self._headers, deadline_s)

    def close(self) -> None:
        """See `Transport.close`: nothing is held."""

    def _post(
        self, path: str, body: bytes, headers: Mapping[str, str], deadline_s: float
    ) -> tuple[bytes, Message]:
        return self._ask("POST", path, body, headers, deadline_s)

    def _ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], deadline_s: float
    ) -> tuple[bytes, Message]:
        """Body and headers of an answer; the headers' names are found in any case."""
        end_s, late = time.monotonic() + deadline_s, threading.Event()
        link = http.client.HTTPConnection(self._host, self._port, timeout=deadline_s)
        clock = None
        try:
            link.connect()
            # The time limit of a socket is for one piece; this one is for all of them.
            clock = threading.Timer(end_s - time.monotonic(), _cut, (link.sock, late))
            clock.daemon = True
            clock.start()
            link.request(method, path, body=body, headers=dict(headers))
            answer = link.getresponse()
            data = b"".join(iter(lambda: answer.read(_PIECE), b""))
        except (OSError, http.client.HTTPException) as error:
            slow = isinstance(error, TimeoutError) or late.is_set()
            code = "DEADLINE_EXCEEDED" if slow else "UNAVAILABLE"
            raise TransportError(code, f"{type(error).__name__}: {error}") from None
        finally:
            if clock is not None:
                clock.cancel()
            link.close()
        if late.is_set():
            raise TransportError("DEADLINE_EXCEEDED", "the answer is too slow")
        if answer.status != http.client.OK:
            message = _said(data)
            code = _HTTP_CODES.get(answer.status, "INTERNAL")
            raise TransportError(_meant(code, message), message)
        return data, answer.headers


def _cut(link: socket.socket, late: threading.Event) -> None:
    """End a connection that another thread reads from."""
    late.set()
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)


_LENGTH = "Inference-Header-Content-Length"
_PIECE = 1 << 20


def _output(answer: Any, name: str) -> NDArray[Any]:
    """One tensor of an answer."""
    found: NDArray[Any] | None = answer.as_numpy(name)
    if found is None:
        raise TransportError("INTERNAL", f"the answer lacks the output {name}")
    return found


def _meant(code: str, message: str) -> str:
    """The code that fits what the server says; its own is the same for different reasons."""
    said = message.lower()
    if any(words in said for words in _ENDING):
        return "UNAVAILABLE"
    if "protocol is restricted" in said:  # by gRPC, with the code UNAVAILABLE
        return "PERMISSION_DENIED"
    return "NOT_FOUND" if "unknown model" in said else code


def _said(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return data[:300].decode("utf-8", "replace")


def _tensors(module: Any, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
    found = []
    for name, value in inputs.items():
        wire = WIRE_TYPES.get(value.dtype.name)
        if wire is None:
            raise TransportError(
                "INVALID_ARGUMENT", f"{name}: {value.dtype} is not one of {', '.join(WIRE_TYPES)}"
            )
        tensor = module.InferInput(name, list(value.shape), wire)
        tensor.set_data_from_numpy(value)
        found.append(tensor)
    return found


def _triton(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            "This needs Triton's client.", found=error, action="pip install 'sssflow[serving]'."
        ) from None
