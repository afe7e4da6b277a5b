"""From a student to the bytes of an ONNX file.

Axis letters: b batch, c input channels (1), k classes, h rows, w columns; s slices of a patch.
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

_NAMES = {2: ("image_bchw", "logits_bkhw"), 3: ("image_bcshw", "logits_bkshw")}
_SIDES = {2: ("rows", "cols"), 3: ("slices", "rows", "cols")}

_LEAST = 2
"""torch.export takes an axis of length one for a constant; the graph runs with one all the same.

Of the batch, and of the cells that a free side has at the coarsest level.
"""


def export_graph(model: LoadedModel, *, opset: int) -> ModelProto:
    """The student as an ONNX graph with a free batch and, of a `free_size` network, free sides.

    Free sides must be multiples of the network's stride; those of a 3-D network are slices, rows
    and columns of a patch. Equal weights give equal bytes: what the exporter knows of the machine
    (paths, stack traces) is taken out.

    Raises:
        InternalError: The exporter or ONNX's own checker refuses the graph.
    """
    net = model.net
    image, logits = _NAMES[net.dimensions]
    sides = input_sides(model)
    if net.free_size:
        sides = tuple(max(side, _LEAST * net.stride) for side in sides)
    example = torch.zeros(_LEAST, 1, *sides)
    return trace(
        net,
        (example,),
        (_free_axes(net),),
        inputs=[image],
        outputs=[logits],
        opset=opset,
        what=f"network {model.description.network.get('name')}",
    )


def input_sides(model: LoadedModel) -> tuple[int, ...]:
    """Rows and columns, or slices, rows and columns, that the network was trained with."""
    preprocessing = model.description.preprocessing
    return preprocessing.size_hw if preprocessing.patch is None else preprocessing.patch.size_shw


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
    net, classes = model.net, len(model.description.class_names)
    image_name, logits_name = _NAMES[net.dimensions]
    sides: tuple[str | int, ...] = input_sides(model)
    if net.free_size:
        sides = tuple(f"{net.stride}*{name}" for name in _SIDES[net.dimensions])
    image = TensorContract(
        name=image_name,
        dtype="float32",
        shape=("batch", 1, *sides),
        meaning="Slices after the intensity rule and the resizing of `preprocessing`."
        if net.dimensions == 2
        else "Patches after the intensity rule and the scaling of `preprocessing`.",
    )
    logits = TensorContract(
        name=logits_name,
        dtype="float32",
        shape=("batch", classes, *sides),
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
    axes: dict[int, object] = {0: torch.export.Dim("batch", min=1)}
    if net.free_size:
        for axis, name in enumerate(_SIDES[net.dimensions], start=2):
            axes[axis] = net.stride * torch.export.Dim(name, min=1)
    return axes
