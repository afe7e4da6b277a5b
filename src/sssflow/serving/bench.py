"""How fast is a served model? A closed loop of our own, and the server's own counters."""

from __future__ import annotations

import re
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository, ServedModel
from sssflow.errors import UnavailableError, UsageError
from sssflow.serving.check import reference_inputs
from sssflow.serving.client import Arrays, Job, TritonClient
from sssflow.serving.direct import fetch, is_this_machine
from sssflow.storage.contracts import load_contract

_ASK_TIMEOUT_S = 5.0
_LINE = re.compile(r"^(nv_inference_\w+)\{([^}]*)\} ([0-9.e+]+)$", re.MULTILINE)
_COUNTERS = {
    "requests": "nv_inference_request_success",
    "inferences": "nv_inference_count",
    "executions": "nv_inference_exec_count",
    "queue_us": "nv_inference_queue_duration_us",
    "compute_us": "nv_inference_compute_infer_duration_us",
}


@dataclass(frozen=True)
class Load:
    """Result of a closed loop.

    Attributes:
        model: What was asked.
        requests: How many were answered.
        concurrency: How many were under way at once.
        p50_ms, p95_ms, p99_ms: Time from send to answer.
        per_s: Answers per second.
        batch: Inferences per execution on the server; None without metrics.
        queue_ratio: Time in the queue over time in the model; None without metrics.
    """

    model: str
    requests: int
    concurrency: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    per_s: float
    batch: float | None
    queue_ratio: float | None


def run(
    client: TritonClient,
    repository: Path,
    model: str,
    *,
    requests: int = 100,
    warm_up: int = 5,
    metrics_url: str | None = None,
) -> Load:
    """Ask a model again and again, `concurrency` requests at a time.

    Args:
        client: Of the server; its `concurrency` is that of the loop.
        repository: Folder with `repository.json`, for the shapes.
        model: One of its models.
        requests: Measured requests.
        warm_up: Requests before them.
        metrics_url: `http://host:port` of the server's metrics, with `/metrics` or without.

    Raises:
        UsageError: The repository has no such model.
        UnavailableError: The server cannot be reached.
    """
    served = _model_of(repository, model)
    inputs = sample_inputs(served)
    outputs = [tensor.name for tensor in served.outputs if not tensor.name.startswith("all_")]
    client.wait_ready([model])
    for _ in range(warm_up):
        client.infer(model, inputs, outputs)
    before = None if metrics_url is None else counters(metrics_url, model)
    taken_ms, wall_s = closed_loop(client, model, inputs, tuple(outputs), requests)
    after = None if metrics_url is None else counters(metrics_url, model)
    p50, p95, p99 = (float(v) for v in np.percentile(taken_ms, (50, 95, 99)))
    batch, ratio = _ratios(before, after)
    return Load(
        model=model,
        requests=requests,
        concurrency=client.config.concurrency,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        per_s=requests / wall_s,
        batch=batch,
        queue_ratio=ratio,
    )


def _model_of(repository: Path, model: str) -> ServedModel:
    described = load_contract(ModelRepository, repository / REPOSITORY_FILE)
    try:
        return described.model(model)
    except KeyError:
        raise UsageError(
            "The repository has no such model.",
            where=repository,
            expected=" | ".join(m.name for m in described.models),
            found=model,
        ) from None


def closed_loop(
    client: TritonClient, model: str, inputs: Arrays, outputs: tuple[str, ...], requests: int
) -> tuple[list[float], float]:
    """Milliseconds of each request, and seconds of all."""
    taken_ms: list[float] = []

    def note(seconds: float) -> None:
        taken_ms.append(1000 * seconds)

    start = time.perf_counter()
    jobs = (Job(i, model, inputs, outputs) for i in range(requests))
    for _ in client.run_all(jobs, note=note):
        pass
    return taken_ms, time.perf_counter() - start


def sample_inputs(model: ServedModel) -> Arrays:
    """A request that the model can answer."""
    if model.name == "sam2_predict":
        side = next(int(t.shape[0]) for t in model.inputs if t.name == "image")
        box = np.array([[side / 4, side / 4], [3 * side / 4, 3 * side / 4]], np.float32)
        return {
            "image": np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8),
            "point_coords": box,
            "point_labels": np.array([2, 3], np.int32),
            "point_counts": np.array([2], np.int32),
        }
    if model.name == "segmenter":
        return {"volume": np.random.default_rng(0).normal(size=(8, 128, 128)).astype(np.float32)}
    return reference_inputs(model)


def counters(metrics_url: str, model: str) -> dict[str, float]:
    """The server's counters of a model, in sum over its versions.

    Raises:
        UnavailableError: The metrics cannot be read.
    """
    url = f"{metrics_url.rstrip('/').removesuffix('/metrics')}/metrics"
    try:
        here = is_this_machine(urllib.parse.urlsplit(url).hostname or "")
        text = fetch(url, direct=here, timeout_s=_ASK_TIMEOUT_S).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        raise UnavailableError("The metrics cannot be read.", where=url, found=error) from None
    found = dict.fromkeys(_COUNTERS, 0.0)
    for name, labels, value in _LINE.findall(text):
        for key, counter in _COUNTERS.items():
            if name == counter and f'model="{model}"' in labels:
                found[key] += float(value)
    return found


def _ratios(
    before: dict[str, float] | None, after: dict[str, float] | None
) -> tuple[float | None, float | None]:
    if before is None or after is None:
        return None, None
    grown = {key: after[key] - before[key] for key in _COUNTERS}
    if not grown["executions"] or not grown["compute_us"]:
        return None, None
    return grown["inferences"] / grown["executions"], grown["queue_us"] / grown["compute_us"]
