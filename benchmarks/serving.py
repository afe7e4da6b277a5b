"""What Triton costs beside the bare ONNX Runtime session, in turn within one run.

Starts the real server for CPU on a SAM-2 bundle, and compares: the encoder, a cached prompt, and a
volume of 40 slices. With --soak N it also makes N requests and reads the memory of the server's
processes. Run: python benchmarks/serving.py BUNDLE [--size 256] [--repeats 20] [--soak 10000]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from sssflow.sam.onnx_backend import OnnxRunner
from sssflow.serving import local_triton, repository
from sssflow.serving.client import Job, TritonClient
from sssflow.serving.config import ClientConfig, RepositoryConfig
from sssflow.serving.environment import ensure
from sssflow.serving.local_triton import ServerState
from sssflow.storage.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
SLICES = 40
VOLUME_TURNS = 5


def timed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def in_turn(
    one: Callable[[], object], other: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Medians in ms of two calls that take turns, after two rounds that do not count."""
    pairs = [(timed_ms(one), timed_ms(other)) for _ in range(repeats + 2)][2:]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def row(name: str, served_ms: float, bare_ms: float, target: str) -> str:
    return f"| {name} | {served_ms:.1f} | {bare_ms:.1f} | {served_ms / bare_ms:.2f} | {target} |"


def box_prompt(size: int) -> dict[str, np.ndarray]:
    return {
        "point_coords": np.array([[size / 4, size / 4], [size / 2, size / 2]], np.float32),
        "point_labels": np.array([2, 3], np.int32),
        "point_counts": np.array([2], np.int32),
    }


def measure(client: TritonClient, runner: OnnxRunner, size: int, repeats: int) -> list[str]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 3, size, size)).astype(np.float32)
    names = ["feat_s0", "feat_s1", "embed"]
    served, bare = in_turn(
        lambda: client.infer("sam2_encoder", {"image": image}, names),
        lambda: runner.run("encoder", {"image": image}),
        repeats,
    )
    rows = [row("encoder", served, bare, "<= 1.15")]
    box = box_prompt(size)
    pixels = rng.integers(0, 255, (size, size, 3), np.uint8)
    feeds = runner.run("encoder", {"image": image}) | {
        "point_coords": np.pad(box["point_coords"], ((0, 1), (0, 0)))[None],
        "point_labels": np.array([[2, 3, -1]], np.int32),
        "mask_input": np.zeros((1, 1, size // 4, size // 4), np.float32),
        "has_mask": np.zeros(1, np.float32),
    }
    served, bare = in_turn(
        lambda: client.infer("sam2_predict", {"image": pixels, **box}, ["masks"]),
        lambda: runner.run("decoder", feeds),
        repeats,
    )
    rows.append(row("cached prompt", served, bare, "5 ms where bare is 2.5 to 3 (256 px)"))

    def volume() -> list[Job]:
        """Slices that the server has not seen: of those that it has, it keeps the features."""
        planes = rng.integers(0, 255, (SLICES, size, size, 3), np.uint8)
        return [
            Job(i, "sam2_predict", {"image": plane, **box}, ("masks",))
            for i, plane in enumerate(planes)
        ]

    def encode_all() -> None:
        for _ in range(SLICES):
            runner.run("encoder", {"image": image})

    # The machine's speed drifts within the seconds of a volume: the ratio is that of neighbours.
    volumes = [volume() for _ in range(VOLUME_TURNS)]
    turns = [
        (timed_ms(lambda jobs=jobs: list(client.run_all(jobs))), timed_ms(encode_all))
        for jobs in volumes
    ]
    served, bare = sorted(turns, key=lambda turn: turn[0] / turn[1])[VOLUME_TURNS // 2]
    rows.append(row(f"{SLICES} slices, against encoder alone", served, bare, "<= 1.10"))
    return rows


def processes_mib(server: ServerState) -> dict[int, float]:
    """Resident memory of the server and of each Python model's process, shared memory left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getsid(int(folder.name)) == server.pid:
                status = (folder / "status").read_text()
                found[int(folder.name)] = int(status.split("RssAnon:")[1].split()[0]) / 1024
        except (OSError, IndexError):
            continue  # it has just ended, or is a thread of the kernel
    return found


def soak(client: TritonClient, server: ServerState, size: int, requests: int) -> list[str]:
    """Memory after a tenth of the requests, and after all."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 255, (16, size, size, 3), np.uint8)
    box = box_prompt(size)

    def ask(count: int) -> None:
        jobs = (
            Job(i, "sam2_predict", {"image": images[i % 16], **box}, ("masks",))
            for i in range(count)
        )
        for _ in client.run_all(jobs):
            pass

    ask(requests // 10)
    before = sum(processes_mib(server).values())
    ask(requests)
    after = sum(processes_mib(server).values())
    return [
        "",
        f"Memory of the server's processes over {requests} requests: {before:.0f} MiB after "
        f"warm-up, {after:.0f} MiB at the end, {100 * (after / before - 1):+.1f} % (target < 5 %).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--name", default="serving")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        repository.run(
            RepositoryConfig(threads=options.threads),
            folder / "repository",
            sam2=options.bundle / "bundle.json",
            size_px=options.size,
        )
        environment = ensure(ROOT / ".venv-triton")
        graphs = options.bundle / str(options.size)
        runner = OnnxRunner(
            {"encoder": graphs / "encoder.onnx", "decoder": graphs / "decoder.onnx"},
            threads=options.threads,
        )
        load_before = os.getloadavg()[0]
        server = local_triton.up(environment, folder / "repository", folder / "state")
        try:
            with TritonClient(ClientConfig(url=server.grpc_url)) as client:
                rows = measure(client, runner, options.size, options.repeats)
                tail = soak(client, server, options.size, options.soak) if options.soak else []
        finally:
            local_triton.down(folder / "state")
    text = [
        f"# Triton beside ONNX Runtime, {options.bundle.name}, {options.size} px",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()} processor, {os.cpu_count()} cores. "
        f"`benchmarks/serving.py`, {options.threads} threads each, spinning off in both, medians "
        f"of {options.repeats} turns, of the volume {VOLUME_TURNS}; load of the machine before the "
        f"run {load_before:.1f}.",
        "",
        "| what | Triton, ms | bare session, ms | ratio | target |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        *tail,
        "",
    ]
    write_text(RESULTS / f"{options.name}.md", "\n".join(text))


if __name__ == "__main__":
    main()
