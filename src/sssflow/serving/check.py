"""Does a server give the numbers of the bundle? Every ONNX graph is asked and run here too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository, ServedModel
from sssflow.errors import InternalError, UsageError
from sssflow.serving.client import Arrays, TritonClient
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import verified_path

_FREE = {"B": 1, "L": 2, "N": 3, "T": 2, "P": 2, "batch": 2}
_SEED = 5


@dataclass(frozen=True)
class TensorCheck:
    """One output of one model: the largest difference from ONNX Runtime here."""

    model: str
    tensor: str
    max_abs_difference: float


def run(
    client: TritonClient,
    repository: Path,
    *,
    tolerance: float = 1e-4,
    threads: int = 1,
    size_hw: tuple[int, int] | None = None,
) -> tuple[TensorCheck, ...]:
    """Compare every graph of a repository with what a server answers to the same inputs.

    The inputs are drawn from a fixed seed. A difference is measured against the larger of 1 and the
    largest value of the tensor.

    Args:
        client: Of the server.
        repository: Folder with the `repository.json` that the server is meant to serve.
        tolerance: Largest difference that passes.
        threads: Of ONNX Runtime here.
        size_hw: Input of graphs with free rows and columns; None: four times their stride.

    Raises:
        UnavailableError: The server cannot be reached (exit 69).
        InternalError: A tensor differs; the first one is named (exit 70).
        DataError: A file of the repository is missing or changed, or the server refuses.
        UsageError: ONNX Runtime is not installed.
    """
    described = load_contract(ModelRepository, repository / REPOSITORY_FILE)
    client.wait_ready(model.name for model in described.models)
    found: list[TensorCheck] = []
    for model in described.models:
        graph = _graph_of(model)
        if graph is None:
            continue
        path = verified_path(graph, base=repository)
        inputs = reference_inputs(model, size_hw)
        names = [tensor.name for tensor in model.outputs]
        served = client.infer(model.name, inputs, names)
        expected = _run_here(path, inputs, names, threads)
        found += [_compare(model.name, name, served[name], expected[name]) for name in names]
    bad = [item for item in found if not item.max_abs_difference <= tolerance]
    if bad:
        raise InternalError(
            "The server does not give the numbers of the bundle.",
            where=f"{bad[0].model}, tensor {bad[0].tensor}",
            expected=f"within {tolerance:g} of ONNX Runtime",
            found=f"largest difference {bad[0].max_abs_difference:g}; "
            f"{len(bad)} of {len(found)} tensors differ",
            action="Publish the repository again, or look at precision settings of the server.",
        )
    return tuple(found)


def reference_inputs(model: ServedModel, size_hw: tuple[int, int] | None = None) -> Arrays:
    """Values that a graph can be asked with, the same on every machine."""
    rng = np.random.default_rng(_SEED)
    inputs: Arrays = {}
    for tensor in model.inputs:
        shape = [_axis(axis, position, size_hw) for position, axis in enumerate(tensor.shape)]
        if tensor.name == "point_labels":
            labels = np.tile(np.array([2, 3, -1]), (shape[0], 1))
            inputs[tensor.name] = labels.astype(tensor.dtype)
        elif tensor.dtype.startswith("int"):
            inputs[tensor.name] = np.arange(math.prod(shape)).reshape(shape).astype(tensor.dtype)
        elif tensor.name == "point_coords":
            inputs[tensor.name] = rng.uniform(0, 64, shape).astype(np.float32)
        elif tensor.name == "has_mask":
            inputs[tensor.name] = np.arange(shape[0], dtype=np.float32) % 2
        else:
            inputs[tensor.name] = rng.normal(size=shape).astype(np.float32)
    return inputs


def _axis(axis: int | str, position: int, size_hw: tuple[int, int] | None) -> int:
    if isinstance(axis, int):
        return axis
    if axis in _FREE:
        return _FREE[axis]
    # A free side such as "16*rows".
    if size_hw is not None:
        return size_hw[position - 2]
    return 4 * int(axis.partition("*")[0])


def _graph_of(model: ServedModel) -> ObjectRef | None:
    for ref in model.files:
        if ref.uri.endswith("/model.onnx"):
            return ref
    return None


def _run_here(
    path: Path, inputs: Mapping[str, NDArray[Any]], names: list[str], threads: int
) -> Arrays:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            "The comparison needs ONNX Runtime.",
            found=error,
            action="pip install 'sssflow[cpu]' (or 'sssflow[gpu]').",
        ) from None
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _compare(model: str, name: str, served: NDArray[Any], expected: NDArray[Any]) -> TensorCheck:
    if served.shape != expected.shape:
        return TensorCheck(model, name, math.inf)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    worst = float(np.abs(served - expected).max(initial=0)) / scale
    return TensorCheck(model, name, worst if math.isfinite(worst) else math.inf)
