"""From a student to the bytes of an ONNX file.

Axis letters: b batch, c input channels (1), k classes, h rows, w columns.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx
import torch
from onnx import ModelProto
from torch import Tensor

import sssflow
from sssflow.contracts.base import Sha256
from sssflow.contracts.bundle import TensorContract
from sssflow.errors import InternalError
from sssflow.networks.base import SegmentationNet
from sssflow.networks.trained import LoadedModel

INPUT_NAME = "image_bchw"
OUTPUT_NAME = "logits_bkhw"

_EXAMPLE_BATCH = 2
"""torch.export takes an axis of length one for a constant; the graph runs with one all the same."""


def export_graph(model: LoadedModel, *, opset: int) -> ModelProto:
    """The student as an ONNX graph with a free batch and, of a `free_size` network, free sides.

    Free rows and columns must be multiples of the network's stride. Equal weights give equal bytes:
    what the exporter knows of the machine (paths, stack traces) is taken out.

    Raises:
        InternalError: The exporter or ONNX's own checker refuses the graph.
    """
    net = model.net
    rows, cols = model.description.preprocessing.size_hw
    example_bchw = torch.zeros(_EXAMPLE_BATCH, 1, rows, cols)
    try:
        with _quiet():
            program = torch.onnx.export(
                net,
                (example_bchw,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=(_free_axes(net),),
                external_data=False,
                verbose=False,
            )
        if program is None:
            raise InternalError("The ONNX exporter gave no graph.")
        graph: ModelProto = program.model_proto
        _forget_the_machine(graph)
        onnx.checker.check_model(graph, full_check=True)
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise InternalError(
            "The student cannot be exported to ONNX.",
            where=f"network {model.description.network.get('name')}",
            found=str(e)[:1000],
            action="Please report it with the model.json.",
        ) from e
    return graph


def set_metadata(graph: ModelProto, facts: Mapping[str, str]) -> None:
    """Replace the file's metadata by `facts`, keys prefixed by `sssflow.` and sorted."""
    del graph.metadata_props[:]
    for key in sorted(facts):
        graph.metadata_props.add(key=f"sssflow.{key}", value=facts[key])


def metadata(
    model: LoadedModel,
    *,
    dataset_digest: Sha256,
    spacing_shw_mm: tuple[float, float, float] | None,
    intended_use: str,
) -> dict[str, str]:
    """What the file tells about itself; structured values are JSON."""
    description = model.description
    return {
        "version": sssflow.__version__,
        "model_digest": model.digest,
        "dataset_digest": dataset_digest,
        "class_names": json.dumps(list(description.class_names)),
        "preprocessing": description.preprocessing.model_dump_json(),
        "spacing_shw_mm": json.dumps(spacing_shw_mm),
        "stride": str(model.net.stride),
        "intended_use": intended_use,
    }


def tensor_contracts(
    model: LoadedModel,
) -> tuple[tuple[TensorContract, ...], tuple[TensorContract, ...]]:
    """Inputs and outputs of the graph; a string names a free axis."""
    stride, classes = model.net.stride, len(model.description.class_names)
    rows: str | int = f"{stride}*rows"
    cols: str | int = f"{stride}*cols"
    if not model.net.free_size:
        rows, cols = model.description.preprocessing.size_hw
    image = TensorContract(
        name=INPUT_NAME,
        dtype="float32",
        shape=("batch", 1, rows, cols),
        meaning="Slices after the intensity rule and the resizing of `preprocessing`.",
    )
    logits = TensorContract(
        name=OUTPUT_NAME,
        dtype="float32",
        shape=("batch", classes, rows, cols),
        meaning="Logits before softmax; channel i is class i of `class_names`.",
    )
    return (image,), (logits,)


def serialise(graph: ModelProto) -> bytes:
    """Bytes of the file; equal graphs give equal bytes."""
    data: bytes = graph.SerializeToString(deterministic=True)
    return data


@torch.no_grad()
def torch_logits(net: SegmentationNet, image_bchw: Tensor) -> Tensor:
    """Logits (b, k, h, w) of the network itself."""
    logits: Tensor = net(image_bchw)
    return logits


def _free_axes(net: SegmentationNet) -> dict[int, object]:
    batch = torch.export.Dim("batch", min=1)
    if not net.free_size:
        return {0: batch}
    rows, cols = torch.export.Dim("rows", min=1), torch.export.Dim("cols", min=1)
    return {0: batch, 2: net.stride * rows, 3: net.stride * cols}


def _forget_the_machine(model: ModelProto) -> None:
    parts = [model, model.graph, *model.graph.node, *model.graph.value_info]
    parts += [*model.graph.input, *model.graph.output, *model.graph.initializer]
    for function in model.functions:
        parts += [function, *function.node, *function.value_info]
    for part in parts:
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and deprecations out of the log."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
