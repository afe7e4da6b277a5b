"""Triton's config.pbtxt, written out in full so that the server has nothing to guess."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sssflow.contracts.bundle import TensorContract

_TYPES = {
    "float32": "TYPE_FP32",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
}
WIRE_TYPES = {"float32": "FP32", "int32": "INT32", "int64": "INT64", "uint8": "UINT8"}


@dataclass(frozen=True)
class WarmUp:
    """Zeros of these shapes (without the batch, where there is one) before a model is ready.

    A model without a batch axis has `batch` 1 as well: Triton leaves out a warm-up of batch 0.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    batch: int = 1


@dataclass(frozen=True)
class ModelConfig:
    """Everything that stands in a config.pbtxt.

    Attributes:
        name: Of the model, equal to its folder.
        backend: `python` or `onnxruntime`.
        file_name: File in the version folder.
        inputs: With the batch as their first axis where `max_batch` is not 0.
        outputs: As `inputs`.
        optional: Names of inputs that a request may leave out.
        max_batch: 0: the first axis is an axis like the others.
        gpu: Run on a GPU; else on the CPU, one instance in both cases.
        tensorrt_cache: Folder of TensorRT's engines; None: no TensorRT.
        batch_delay_us: Wait for other requests; None: no dynamic batching.
        parameters: Read by the backend or by our Python models.
        warm_ups: Requests that are made before the model is ready.
    """

    name: str
    backend: str
    file_name: str
    inputs: Sequence[TensorContract]
    outputs: Sequence[TensorContract]
    optional: frozenset[str] = frozenset()
    max_batch: int = 0
    gpu: bool = False
    tensorrt_cache: str | None = None
    batch_delay_us: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    warm_ups: Sequence[WarmUp] = ()


def to_pbtxt(config: ModelConfig) -> str:
    """The text of the file; equal settings give equal text."""
    lines = [
        f"name: {_quoted(config.name)}",
        f"backend: {_quoted(config.backend)}",
        f"default_model_filename: {_quoted(config.file_name)}",
        f"max_batch_size: {config.max_batch}",
    ]
    for tensor in config.inputs:
        lines += _tensor("input", tensor, config, optional=tensor.name in config.optional)
    for tensor in config.outputs:
        lines += _tensor("output", tensor, config, optional=False)
    kind = "KIND_GPU" if config.gpu else "KIND_CPU"
    lines += ["instance_group [", f"  {{ count: 1 kind: {kind} }}", "]"]
    lines += ["version_policy { latest { num_versions: 1 } }"]
    if config.batch_delay_us is not None:
        lines += [f"dynamic_batching {{ max_queue_delay_microseconds: {config.batch_delay_us} }}"]
    if config.tensorrt_cache is not None:
        lines += _tensorrt(config.tensorrt_cache)
    for key, value in sorted(config.parameters.items()):
        lines += [
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        ]
    for warm_up in config.warm_ups:
        lines += _warm_up(warm_up, config)
    return "\n".join(lines) + "\n"


def _tensor(kind: str, tensor: TensorContract, config: ModelConfig, *, optional: bool) -> list[str]:
    shape = tensor.shape[1:] if config.max_batch else tensor.shape
    dims = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in shape)
    lines = [
        f"{kind} [",
        "  {",
        f"    name: {_quoted(tensor.name)}",
        f"    data_type: {_TYPES[tensor.dtype]}",
        f"    dims: [ {dims} ]",
    ]
    lines += ["    optional: true"] if optional else []
    return [*lines, "  }", "]"]


def _tensorrt(cache: str) -> list[str]:
    keys = {
        "precision_mode": "FP32",
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": cache,
    }
    listed = [
        f"        parameters {{ key: {_quoted(key)} value: {_quoted(value)} }}"
        for key, value in keys.items()
    ]
    return [
        "optimization {",
        "  execution_accelerators {",
        "    gpu_execution_accelerator [",
        "      {",
        '        name: "tensorrt"',
        *listed,
        "      }",
        "    ]",
        "  }",
        "}",
    ]


def _warm_up(warm_up: WarmUp, config: ModelConfig) -> list[str]:
    types = {tensor.name: _TYPES[tensor.dtype] for tensor in config.inputs}
    lines = ["model_warmup [", "  {", f"    name: {_quoted(warm_up.name)}"]
    lines += [f"    batch_size: {warm_up.batch}"]
    for name, shape in warm_up.shapes.items():
        dims = ", ".join(map(str, shape))
        lines += [
            "    inputs {",
            f"      key: {_quoted(name)}",
            f"      value {{ data_type: {types[name]} dims: [ {dims} ] zero_data: true }}",
            "    }",
        ]
    return [*lines, "  }", "]"]


def _quoted(text: str) -> str:
    # JSON's escapes are a part of those of the protobuf text format.
    return json.dumps(text)
