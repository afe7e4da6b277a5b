"""From a SAM-2 model to the bytes of its four ONNX graphs, in fp32 or smaller.

Letters as in `contracts.sam2_graphs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

import sssflow
from sssflow.contracts.base import Sha256
from sssflow.contracts.bundle import TensorContract
from sssflow.contracts.sam2_graphs import (
    IMAGE_MEAN,
    IMAGE_STD,
    GraphName,
    Precision,
    Sam2Rules,
    graph_tensors,
)
from sssflow.export.onnx import serialise, set_metadata
from sssflow.export.sam2_modules import constant_positions, graph_module
from sssflow.export.tracing import trace
from sssflow.sam.onnx_backend import require_runtime
from sssflow.storage.atomic import write_bytes

OPSET = 18
_PADDING = "none: where there are points the caller appends one of label -1; never more"
LARGEST = "largest_of_"
# Length of each free axis while tracing, where 1 would be taken for a constant.
_EXAMPLE = {"B": 2, "L": 2, "N": 3, "T": 3, "P": 4}


def make_graph(name: GraphName, model: SAM2Base) -> ModelProto:
    """One graph of a model in fp32 for the model's input size.

    Raises:
        InternalError: The exporter or ONNX's own checker refuses the graph.
    """
    inputs, outputs = tensors_of(name, model)
    with constant_positions(model), torch.no_grad():
        return trace(
            graph_module(name, model),
            tuple(_example(tensor) for tensor in inputs),
            _free_axes(inputs),
            inputs=[tensor.name for tensor in inputs],
            outputs=[tensor.name for tensor in outputs],
            opset=OPSET,
            what=f"SAM-2's {name} at {model.image_size} px",
        )


def tensors_of(
    name: GraphName, model: SAM2Base
) -> tuple[tuple[TensorContract, ...], tuple[TensorContract, ...]]:
    """Inputs and outputs of a graph of this model."""
    return graph_tensors(name, int(model.image_size), int(model.hidden_dim), int(model.mem_dim))


def describe(
    graph: ModelProto,
    *,
    name: GraphName,
    size_px: int,
    variant: str,
    sam2_version: str,
    precision: Precision,
    weights_sha256: Sha256,
    rules: Sam2Rules,
) -> None:
    """Write what a file says about itself into its `metadata_props`; JSON where structured."""
    versions = {
        "sssflow": sssflow.__version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": require_runtime().__version__,
    }
    set_metadata(
        graph,
        {
            "graph": name,
            "size_px": str(size_px),
            "variant": variant,
            "sam2_version": sam2_version,
            "precision": precision,
            "weights_sha256": weights_sha256,
            "opset": str(OPSET),
            "prompt_padding": _PADDING,
            "image_mean": json.dumps(IMAGE_MEAN),
            "image_std": json.dumps(IMAGE_STD),
            "rules": rules.model_dump_json(),
            "versions": json.dumps(versions, sort_keys=True),
        },
    )


def write_graph(graph: ModelProto, path: Path, precision: Precision) -> None:
    """Write a graph in the precision that is asked for; its inputs and outputs stay fp32.

    fp16: arithmetic in half precision. bf16: weights rounded to bfloat16 and stored so (half the
    file), arithmetic in fp32. int8: the weights of matrix products as int8, activations quantised
    as they come.
    """
    if precision == "int8":
        _quantise(graph, path)
        return
    smaller: dict[Precision, Callable[[ModelProto], ModelProto]] = {
        "fp32": lambda same: same,
        "fp16": _half,
        "bf16": _bfloat16_weights,
    }
    write_bytes(path, serialise(smaller[precision](graph)))


def _quantise(graph: ModelProto, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = ModelProto()
    plain.CopyFrom(graph)
    # The quantiser transposes weights and would trip over the shapes that they had.
    del plain.graph.value_info[:]
    path.parent.mkdir(parents=True, exist_ok=True)
    quantize_dynamic(plain, path, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)


def _half(graph: ModelProto) -> ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = ["LayerNormalization", "Resize", "Softmax", "ReduceMean", "Sin", "Cos"]
    smaller: ModelProto = convert_float_to_float16(
        graph, keep_io_types=True, op_block_list=kept, disable_shape_infer=False
    )
    # The converter makes one cast per reader of a value, all with the same name and output.
    made: set[str] = set()
    once = []
    for node in smaller.graph.node:
        if not made.issuperset(node.output):
            once.append(node)
            made.update(node.output)
    del smaller.graph.node[:]
    smaller.graph.node.extend(once)
    return smaller


def with_largest(graph: ModelProto) -> ModelProto:
    """A copy that gives the largest magnitude of each value inside too, one output of each."""
    wide = onnx.shape_inference.infer_shapes(graph)
    typed = (*wide.graph.value_info, *wide.graph.output)
    floats = {v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    inside = [name for node in wide.graph.node for name in node.output if name in floats]
    for number, name in enumerate(inside):
        size, largest = f"size_of_{number}", f"{LARGEST}{number}"
        wide.graph.node.append(onnx.helper.make_node("Abs", [name], [size]))
        wide.graph.node.append(onnx.helper.make_node("ReduceMax", [size], [largest], keepdims=0))
        scalar = onnx.helper.make_tensor_value_info(largest, TensorProto.FLOAT, [])
        wide.graph.output.append(scalar)
    return wide


def _bfloat16_weights(graph: ModelProto) -> ModelProto:
    """Replace each larger fp32 weight by a bfloat16 one and a cast, which is folded on loading."""
    smaller = ModelProto()
    smaller.CopyFrom(graph)
    casts = []
    for weight in smaller.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < 64:
            continue
        values = torch.from_numpy(numpy_helper.to_array(weight).copy()).to(torch.bfloat16)
        raw = values.view(torch.int16).numpy().tobytes()
        name = weight.name
        dims = list(weight.dims)
        weight.Clear()
        weight.name, weight.data_type, weight.raw_data = f"{name}_bf16", TensorProto.BFLOAT16, raw
        weight.dims.extend(dims)
        casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *smaller.graph.node]
    del smaller.graph.node[:]
    smaller.graph.node.extend(nodes)
    return smaller


def _example(tensor: TensorContract) -> Tensor:
    shape = [_EXAMPLE[n] if isinstance(n, str) else n for n in tensor.shape]
    if tensor.dtype == "float32":
        return torch.zeros(shape)
    return torch.ones(shape, dtype=torch.int32 if tensor.dtype == "int32" else torch.int64)


def _free_axes(inputs: tuple[TensorContract, ...]) -> list[dict[int, Any]]:
    names = sorted({n for tensor in inputs for n in tensor.shape if isinstance(n, str)})
    axes = {name: torch.export.Dim(name, min=0 if name == "N" else 1) for name in names}
    return [
        {place: axes[n] for place, n in enumerate(tensor.shape) if isinstance(n, str)}
        for tensor in inputs
    ]
