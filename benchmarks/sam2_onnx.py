"""How fast SAM-2's graphs are in ONNX Runtime, as a ratio to eager PyTorch in the same run.

Tiny in its official shape with random weights (time does not depend on them) and the packaged
nano; batch 1; the decoder with box and point of one and of eight objects. PyTorch and ONNX Runtime
take turns, both with the same number of threads and without spinning, and the median of each is
compared, so that other work on the machine weighs on both alike.

Run: python benchmarks/sam2_onnx.py [--sizes 256,512] [--out benchmarks/results/sam2_onnx.md]
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
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported

import numpy as np
import onnxruntime
import torch

from sssflow.contracts.sam2_graphs import graph_file
from sssflow.export.sam2_modules import graph_module
from sssflow.export.sam2_onnx import make_graph, write_graph
from sssflow.sam.build import build_sam2
from sssflow.sam.onnx_backend import OnnxRunner
from sssflow.sam.weights_io import load_weights, packaged_weights
from sssflow.storage.atomic import write_text

TARGET = 0.6


def turns(calls: tuple[Callable[[], Any], Callable[[], Any]], seconds: float) -> list[float]:
    """Median time of each call in ms; they take turns for about `seconds`."""
    for call in calls:
        call()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 7:
        for call, kept in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            kept.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(kept) for kept in times]


def cases(size: str, side: int) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """Label to graph and inputs."""
    width = 128 if size == "nano" else 256
    rng = np.random.default_rng(0)
    shapes = {4: width // 8, 8: width // 4, 16: width}
    maps = [rng.normal(size=(1, c, side // s, side // s)).astype("f4") for s, c in shapes.items()]
    found: dict[str, tuple[str, dict[str, np.ndarray]]] = {
        "encoder": ("encoder", {"image": rng.normal(size=(1, 3, side, side)).astype("f4")})
    }
    for objects in (1, 8):
        found[f"decoder, {objects} object(s)"] = (
            "decoder",
            {
                **dict(zip(("feat_s0", "feat_s1", "embed"), maps, strict=True)),
                "point_coords": rng.uniform(0, side, (objects, 4, 2)).astype("f4"),
                "point_labels": np.tile(np.asarray([2, 3, 1, -1], np.int32), (objects, 1)),
                "mask_input": np.zeros((objects, 1, side // 4, side // 4), np.float32),
                "has_mask": np.zeros(objects, np.float32),
            },
        )
    return found


def measure(size: str, side: int, folder: Path, threads: int, seconds: float) -> list[str]:
    """Rows of the table."""
    torch.manual_seed(0)
    model = build_sam2(size, input_size=side)  # type: ignore[arg-type]
    if size == "nano":
        load_weights(model, packaged_weights())
    model.requires_grad_(False)
    files = {name: folder / size / graph_file(name, side) for name in ("encoder", "decoder")}
    for name, path in files.items():
        write_graph(make_graph(name, model), path, "fp32")
    runner = OnnxRunner(files, threads=threads)
    rows = []
    for label, (graph, inputs) in cases(size, side).items():
        module = graph_module(graph, model)  # type: ignore[arg-type]
        tensors = [torch.from_numpy(value) for value in inputs.values()]

        @torch.inference_mode()
        def eager(module: torch.nn.Module = module, tensors: list[torch.Tensor] = tensors) -> Any:
            return module(*tensors)

        def onnx(graph: Any = graph, inputs: dict[str, np.ndarray] = inputs) -> Any:
            return runner.run(graph, inputs)

        slow, fast = turns((eager, onnx), seconds)
        verdict = "yes" if fast <= TARGET * slow else "no"
        figures = f"{slow:.1f} | {fast:.1f} | {fast / slow:.2f}"
        rows.append(f"| {size} | {side} | {label} | {figures} | {verdict} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="256,512")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each row")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    before = os.getloadavg()[0]
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in ("tiny", "nano"):
            for side in map(int, given.sizes.split(",")):
                rows += measure(size, side, Path(folder), given.threads, given.seconds)
                print(*rows[-3:], sep="\n", flush=True)
    after = os.getloadavg()[0]
    head = [
        "# SAM-2 in ONNX Runtime against eager PyTorch",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{given.threads} threads each, torch {torch.__version__}, "
        f"onnxruntime {onnxruntime.__version__}. Load average {before:.1f} before and {after:.1f} "
        "after, this run included; what else ran weighs on both, which take turns. Medians.",
        "",
        f"`python benchmarks/sam2_onnx.py`; target: ratio at most {TARGET}.",
        "",
        "| model | input px | graph | eager ms | ONNX Runtime ms | ratio | target met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    text = "\n".join([*head, *rows]) + "\n"
    if given.out:
        write_text(given.out, text)
    print(text)


if __name__ == "__main__":
    main()
