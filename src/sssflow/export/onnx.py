"""From a student to the bytes of an ONNX file.

Axis letters: b batch, c input channels (1), k classes, h rows, w columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from onnx import ModelProto
from torch import Tensor

import sssflow
from sssflow.contracts.base import Sha256
from sssflow.contracts.bundle import TensorContract
from sssflow.export.tracing import trace
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
    return trace(
        net,
        (example_bchw,),
        (_free_axes(net),),
        inputs=[INPUT_NAME],
        outputs=[OUTPUT_NAME],
        opset=opset,
        what=f"network {model.description.network.get('name')}",
    )


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
