"""Malformed requests against the real server for minutes: it neither ends nor stops being ready.

Eleven kinds on the two open ports: noise, broken HTTP and HTTP/2, lengths that lie, every endpoint
with mutated bodies, mutated inference requests as JSON, binary tensors and protobuf messages. A key
closes the admin interfaces and inference by HTTP, as the chart's `server.httpInference=false` does;
--http-inference leaves that open. Beside them, once a second, every model is asked whether it is
ready, and one good request must have the same numbers all the time.

Run: python benchmarks/fuzz_serving.py BUNDLE [--segmenter BUNDLE] [--minutes 10] [--rate 20]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import platform
import random
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from serving import RESULTS, ROOT, box_prompt, processes_mib
from sssflow.serving import local_triton, repository
from sssflow.serving.client import TritonClient
from sssflow.serving.config import ClientConfig, RepositoryConfig
from sssflow.serving.environment import ensure
from sssflow.serving.local_triton import ServerOptions, ServerState
from sssflow.storage.atomic import write_text

CLOSED = ("--http-restricted-api=inference:sssflow-admin-key=key",)
ANSWER_S = 5.0
WORKERS = 4
ODD = (
    *(None, True, -1, 0, 2**31, 2**63, 2**64, -(2**63), 1e308, float("nan"), "", "a" * 3000),
    *("\x00", "../../etc/passwd", "%s%n", [], {}, [[]], [-1], [2**40, 2**40], {"": {}}, "FP32"),
)
WORDS = "id inputs outputs parameters shape data binary_data_size sequence_id timeout".split()
ENDPOINTS = (
    "v2 v2/health/live v2/health/ready v2/models/stats v2/models/%s v2/models/%s/ready "
    "v2/models/%s/infer v2/models/%s/versions/1/infer v2/models/%s/versions/9 v2/models/%s/config "
    "v2/models/%s/stats v2/models/%s/generate v2/models/%s/generate_stream v2/repository/index "
    "v2/repository/models/%s/load v2/repository/models/%s/unload v2/systemsharedmemory/status "
    "v2/systemsharedmemory/region/a/register v2/cudasharedmemory/status v2/trace/setting "
    "v2/models/%s/trace/setting v2/logging"
).split()
METHODS = (
    "ServerLive ServerReady ModelReady ServerMetadata ModelMetadata ModelInfer ModelStreamInfer "
    "ModelConfig ModelStatistics RepositoryIndex RepositoryModelLoad RepositoryModelUnload "
    "SystemSharedMemoryRegister CudaSharedMemoryRegister TraceSetting LogSettings Nothing"
).split()


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few bytes of the first 2000 turned, cut out, doubled, or put in; mostly one bit."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(min(len(found), 2000) or 1)
        length = rng.choice((1, 1, 2, 8, 100))
        verb = rng.randrange(8)
        if verb == 0:
            del found[place : place + length]
        elif verb in {1, 2}:
            put = found[place : place + length] if verb == 1 else rng.randbytes(length)
            found[place:place] = put
        elif found:
            found[place] ^= 1 << rng.randrange(8)
    return bytes(found)


def changed_json(rng: random.Random, value: Any) -> Any:
    """The same document with one to three odd values, keys gone, or lists of another length."""
    value = {"": copy.deepcopy(value)}
    for _ in range(rng.randint(1, 3)):
        spot, key = value, ""
        while isinstance(spot[key], (dict, list)) and spot[key] and rng.random() < 0.8:
            spot = spot[key]
            key = rng.choice(list(spot)) if isinstance(spot, dict) else rng.randrange(len(spot))
        verb = rng.randrange(4)
        if verb == 0 and key != "":
            del spot[key]
        elif verb == 1 and isinstance(spot, dict):
            spot[rng.choice(WORDS)] = copy.deepcopy(rng.choice(ODD))
        elif verb == 2 and isinstance(spot, list):
            spot += copy.deepcopy(spot) * rng.choice((1, 3))
        else:
            spot[key] = copy.deepcopy(rng.choice(ODD))
    return value.get("")


def post(path: str, body: bytes, method: str = "POST", **headers: object) -> bytes:
    """A request as bytes; `Content_Length` among the headers lies about the length."""
    lines = [f"{method} /{path} HTTP/1.1", "Host: a"]
    lines += [
        f"{key.replace('_', '-')}: {value}"
        for key, value in ({"Content_Length": len(body)} | headers).items()
    ]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body


class Attacks:
    """The kinds of malformed requests, each a function of a random generator."""

    def __init__(self, server: ServerState, good: dict[str, np.ndarray], http_answer: str) -> None:
        self.server, self.models = server, server.models
        self.infer = "v2/models/sam2_predict/infer"
        types = {"uint8": "UINT8", "float32": "FP32", "int32": "INT32"}
        entries = [
            {"name": n, "shape": list(v.shape), "datatype": types[v.dtype.name]}
            for n, v in good.items()
        ]
        self.binary = b"".join(value.tobytes() for value in good.values())
        self.with_sizes = {
            "inputs": [
                entry | {"parameters": {"binary_data_size": value.nbytes}}
                for entry, value in zip(entries, good.values(), strict=True)
            ],
            "outputs": [{"name": "masks", "parameters": {"binary_data": True}}],
        }
        self.plain = {
            "inputs": [e | {"data": good[str(e["name"])].ravel().tolist()} for e in entries]
        }
        message = service_pb2.ModelInferRequest(model_name="sam2_predict")
        for entry, value in zip(entries, good.values(), strict=True):
            message.inputs.add(**entry)
            message.raw_input_contents.append(value.tobytes())
        self.message = message
        self.channel = grpc.insecure_channel(f"{server.host}:{server.grpc_port}")
        self.plain_bytes = json.dumps(self.plain).encode()
        # Before it is changed every request is good, or closed for the same reason.
        head = json.dumps(self.with_sizes).encode()
        binary = post(self.infer, head + self.binary, Inference_Header_Content_Length=len(head))
        assert self.raw(post(self.infer, self.plain_bytes)) == self.raw(binary) == http_answer
        assert self.call("ModelInfer", message.SerializeToString()) == "OK"
        self.kinds: dict[str, Callable[[random.Random], str]] = {
            "HTTP port, noise": lambda r: self.raw(r.randbytes(r.randrange(1, 4000))),
            "HTTP, request line and headers": self._head,
            "HTTP, lengths that lie": self._lengths,
            "HTTP, every endpoint": self._endpoint,
            "HTTP, JSON request, values": self._json_values,
            "HTTP, JSON request, bytes": self._json_bytes,
            "HTTP, binary request": self._tensors,
            "gRPC port, noise": lambda r: self.raw(self._frames(r), grpc_port=True),
            "gRPC, every method, noise": self._method,
            "gRPC, inference, bytes": self._message_bytes,
            "gRPC, inference, fields": self._message_fields,
        }

    def raw(self, data: bytes, *, grpc_port: bool = False) -> str:
        """Send bytes, end the sending side, and read what comes."""
        port = self.server.grpc_port if grpc_port else self.server.http_port
        try:
            with socket.create_connection((self.server.host, port), timeout=ANSWER_S) as link:
                link.sendall(data)
                link.shutdown(socket.SHUT_WR)
                answer = link.recv(4096)
        except TimeoutError:
            return f"none in {ANSWER_S:g} s"
        except OSError:
            return "closed"
        if grpc_port and answer:
            return "HTTP/2 frames"
        return answer[9:12].decode("ascii", "replace") if answer[:5] == b"HTTP/" else "closed"

    def _head(self, rng: random.Random) -> str:
        good = post(self.infer, b"{}", Connection="close")
        odd = (
            changed_bytes(rng, good),
            good.replace(b"Host: a", b"Host: " + b"a" * rng.choice((9000, 200_000))),
            good.replace(b"Host: a", b"\r\n".join(b"X-%d: 1" % i for i in range(5000))),
            good.replace(b"HTTP/1.1", rng.choice((b"HTTP/9.9", b"", b"HTTP/1.1 x"))),
            good.replace(b"POST", rng.choice((b"\x00", b"PRI", b"P" * 10_000, b"DELETE"))),
        )
        return self.raw(rng.choice(odd))

    def _lengths(self, rng: random.Random) -> str:
        count = rng.choice((-1, 0, 1, 1000, 10**6, 10**9, 10**30, "x", "0x10"))
        lies: dict[str, object] = rng.choice(
            (
                {"Content_Length": count},
                {"Inference_Header_Content_Length": count},
                {"Transfer_Encoding": rng.choice(("chunked", "gzip", "chunked, chunked"))},
            )
        )
        return self.raw(post(self.infer, self.plain_bytes, **lies))

    def _endpoint(self, rng: random.Random) -> str:
        name = rng.choice((*self.models, "", "nothing", "..%2f..", "%00", "a" * 5000, "é"))
        path = rng.choice(ENDPOINTS).replace("%s", name)
        body = json.dumps(changed_json(rng, {"parameters": {"config": "{}"}})).encode()
        method = rng.choice(("GET", "POST", "PUT", "HEAD", "OPTIONS"))
        return self.raw(post(path, body, method, Connection="close"))

    def _json_values(self, rng: random.Random) -> str:
        return self.raw(post(self.infer, json.dumps(changed_json(rng, self.plain)).encode()))

    def _json_bytes(self, rng: random.Random) -> str:
        body = changed_bytes(rng, self.plain_bytes)
        if rng.random() < 0.1:
            body = b'{"inputs":' + b"[" * rng.choice((100, 100_000))
        return self.raw(post(self.infer, body))

    def _tensors(self, rng: random.Random) -> str:
        head = json.dumps(changed_json(rng, self.with_sizes)).encode()
        data = self.binary[: rng.choice((len(self.binary), rng.randrange(len(self.binary))))]
        return self.raw(post(self.infer, head + data, Inference_Header_Content_Length=len(head)))

    def _frames(self, rng: random.Random) -> bytes:
        found = [rng.choice((b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))]
        for _ in range(rng.randrange(5)):
            body = rng.randbytes(rng.randrange(100))
            kind, flags, stream = rng.randrange(12), rng.randrange(256), rng.randrange(8)
            length = rng.choice((len(body), rng.randrange(1 << 24)))
            found.append(length.to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + body)
        return b"".join(found)

    def call(self, method: str, data: bytes) -> str:
        """One gRPC call with a message of these bytes."""
        ask = self.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        try:
            ask(data, timeout=ANSWER_S)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def _method(self, rng: random.Random) -> str:
        return self.call(rng.choice(METHODS), rng.randbytes(rng.randrange(200)))

    def _message_bytes(self, rng: random.Random) -> str:
        head, data = service_pb2.ModelInferRequest(), service_pb2.ModelInferRequest()
        head.CopyFrom(self.message)
        del head.raw_input_contents[:]  # stays as it is, else nearly every change hits a pixel
        data.raw_input_contents.extend(self.message.raw_input_contents)
        changed = changed_bytes(rng, head.SerializeToString())
        return self.call("ModelInfer", changed + data.SerializeToString())

    def _message_fields(self, rng: random.Random) -> str:
        message = service_pb2.ModelInferRequest()
        message.CopyFrom(self.message)
        tensor = rng.choice(message.inputs)
        verbs: tuple[Callable[[], object], ...] = (
            lambda: tensor.shape.append(rng.choice((0, -1, 2**62))),
            lambda: tensor.shape.__setitem__(0, rng.choice((0, -1, 3, 2**62))),
            lambda: setattr(tensor, "datatype", rng.choice(("", "FP64", "BYTES", "a" * 999))),
            lambda: setattr(tensor, "name", rng.choice(("", "image", "has_mask", "\x00"))),
            lambda: message.inputs.append(tensor),
            lambda: message.inputs.remove(tensor),
            lambda: message.raw_input_contents.append(b"\x00" * rng.choice((0, 1, 10**6))),
            lambda: message.raw_input_contents.pop(),
            lambda: tensor.contents.fp32_contents.extend([float("nan")] * 9),
            lambda: tensor.parameters["shared_memory_region"].__setattr__("string_param", "a"),
            lambda: message.parameters["sequence_id"].__setattr__("int64_param", -(2**63)),
            lambda: setattr(message, "model_version", rng.choice(("9", "x", "-1"))),
            lambda: setattr(message, "model_name", rng.choice((*self.models, ""))),
            lambda: message.outputs.add(name=rng.choice(("masks", "", "nothing"))),
        )
        for _ in range(rng.randint(1, 2)):
            with contextlib.suppress(ValueError, IndexError):  # the tensor has gone already
                rng.choice(verbs)()
        return self.call("ModelInfer", message.SerializeToString())


class Watch(threading.Thread):
    """Asks once a second whether the models are ready, and a good request for its numbers."""

    def __init__(self, server: ServerState, ask: Callable[[], np.ndarray]) -> None:
        super().__init__(daemon=True)
        self.pid, self.models, self.ask, self.golden = server.pid, server.models, ask, ask()
        self.http = TritonClient(ClientConfig(url=server.http_url))
        self.turns = self.not_ready = self.other = self.slowest_ms = 0
        self.done, self.memory = threading.Event(), list[dict[int, float]]()

    def run(self) -> None:
        """Until `done` is set, and once more."""
        last = False
        while not last:
            last = self.done.wait(1)
            self.turns += 1
            self.not_ready += not all(self.http.ready(name) for name in self.models)
            start = time.perf_counter()
            try:
                self.other += not np.array_equal(self.ask(), self.golden)
            except Exception:  # whatever it is, the request was not answered as before
                self.other += 1
            self.slowest_ms = max(self.slowest_ms, round(1000 * (time.perf_counter() - start)))


def attack(attacks: Attacks, minutes: float, rate: float) -> Counter[tuple[str, str]]:
    """Send for so long at so many requests a second; counts by kind and answer."""
    told: list[tuple[str, str]] = []
    end = time.monotonic() + 60 * minutes

    def work(number: int) -> None:
        rng = random.Random(number)  # noqa: S311 - no secret
        while time.monotonic() < end:
            start = time.monotonic()
            kind = rng.choice(list(attacks.kinds))
            answer = attacks.kinds[kind](rng)
            told.append((kind, answer))
            time.sleep(max(0.0, WORKERS / rate - (time.monotonic() - start)))

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(WORKERS)))
    return Counter(told)


def report(counts: Counter[tuple[str, str]], watch: Watch, options: argparse.Namespace) -> str:
    before, after = watch.memory
    closed = "the admin interfaces" + ("" if options.http_inference else " and inference by HTTP")
    rows = []
    for kind in sorted({kind for kind, _ in counts}):
        answers = sorted((a, n) for (k, a), n in counts.items() if k == kind)
        told = ", ".join(f"{answer}: {number}" for answer, number in answers)
        rows.append(f"| {kind} | {sum(n for _, n in answers)} | {told} |")
    same = "the same" if {watch.pid, *before} == set(after) else "others"
    was, now = sum(before.values()), sum(after.values())
    lines = [
        "# Malformed requests against Triton",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()} processor, {os.cpu_count()} cores. "
        f"`python benchmarks/fuzz_serving.py`: {options.minutes:g} minutes, {sum(counts.values())} "
        f"requests, {len(watch.models)} models; a key closes {closed}.",
        "",
        "| at the end | found | wanted |\n| --- | --- | --- |",
        f"| looks, one a second, with a model not ready | {watch.not_ready} of {watch.turns} | 0 |",
        f"| good requests without their numbers | {watch.other} of {watch.turns} | 0 |",
        f"| processes of the server, before and after | {same} | the same |",
        f"| memory of the processes | {was:.0f} MiB before, {now:.0f} MiB after "
        f"({100 * (now / was - 1):+.1f} %) | |",
        f"| slowest good request | {watch.slowest_ms} ms | |\n",
        "| kind | sent | answers |\n| --- | --- | --- |",
        *rows,
        "",
        "`closed`: ended without an answer. `200`, `OK`: the change left the request good.\n",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--segmenter", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--http-inference", action="store_true", help="leave it open")
    parser.add_argument("--rate", type=float, default=20, help="requests a second")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving_fuzz.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sam2 = options.bundle / "bundle.json"
        segmenter = None if options.segmenter is None else options.segmenter / "bundle.json"
        made = repository.run(
            RepositoryConfig(threads=1), folder / "repository", sam2=sam2, segmenter=segmenter
        )
        server = local_triton.up(
            ensure(ROOT / ".venv-triton"),
            folder / "repository",
            folder / "state",
            options=ServerOptions(admin_key="key", extra=() if options.http_inference else CLOSED),
        )
        side = next(m.inputs[0].shape[0] for m in made.models if m.name == "sam2_predict")
        assert isinstance(side, int)
        image = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
        good = {"image": image, **box_prompt(side)}
        try:
            with TritonClient(ClientConfig(url=server.grpc_url, patience_s=0)) as client:

                def ask() -> np.ndarray:
                    return client.infer("sam2_predict", good, ["masks"])["masks"]

                attacks = Attacks(server, good, "200" if options.http_inference else "403")
                watch = Watch(server, ask)
                attack(attacks, min(1.0, options.minutes / 10), options.rate)  # warm-up
                watch.memory.append(processes_mib(server))
                watch.start()
                counts = attack(attacks, options.minutes, options.rate)
                watch.done.set()
                watch.join()
                watch.memory.append(processes_mib(server))
        finally:
            local_triton.down(folder / "state")
    write_text(options.out, report(counts, watch, options))


if __name__ == "__main__":
    main()
