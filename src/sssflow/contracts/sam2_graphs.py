"""SAM-2 as four ONNX graphs: what each takes and gives, and the bundle that holds them.

Letters: B images or objects, L prompted objects of one image, N points of each, T remembered
slices, P object pointers; S the side of the square input in pixels. C is the model's width and M
that of a remembered slice (256 and 64 in the official sizes, 128 and 64 in nano).

How a caller works with them:

* Image: three channels in [0, 1], resized to S x S, minus `IMAGE_MEAN`, divided by `IMAGE_STD`.
* Points: (x, y) input pixel indices; the graph adds the half pixel. A box is two points, its
  corners with labels 2 and 3, put before the other points. **No implicit pad point**: SAM-2 was
  trained with one point of label -1 (coordinates 0, 0) after the others wherever there is a point
  or box, and none where there is only a mask, so the caller appends exactly that one. More of
  them change the mask: prompts of different point counts go in different calls.
* A slice that is only tracked gets two points of label -1 (what SAM-2's own tracker feeds).
* Mask prompt: logits at S/4; `has_mask` 0 ignores it. With `Sam2Rules.hints` (nano) the prompts
  are drawn into the mask input too (`sssflow.sam.hints`).
* Choice among the four masks: with `multimask_min_points <= points <= multimask_max_points` (a box
  counts as two, the pad point not at all) the best by IoU of masks 1 to 3, else mask 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, Literal

from pydantic import Field

from sssflow.contracts.base import SHA256_PATTERN, Contract, ObjectRef, Record, Sha256
from sssflow.contracts.bundle import TensorContract

GraphName = Literal["encoder", "decoder", "memory_attention", "memory_encoder"]
GRAPHS: Final[tuple[GraphName, ...]] = ("encoder", "decoder", "memory_attention", "memory_encoder")
Precision = Literal["fp32", "fp16", "bf16", "int8"]
SAM2_BUNDLE_FILE: Final = "bundle.json"

IMAGE_MEAN: Final = (0.485, 0.456, 0.406)
IMAGE_STD: Final = (0.229, 0.224, 0.225)
PAD_LABEL: Final = -1


Tensors = tuple[tuple[TensorContract, ...], tuple[TensorContract, ...]]
"""Inputs and outputs of a graph, in order."""


class Sam2Rules(Record):
    """What a caller must know beside the tensors."""

    hints: bool = Field(description="Prompts are drawn into the mask input too (nano).")
    multimask_min_points: int
    multimask_max_points: int
    memory_slots: int = Field(description="Rows of the time code; the last is of prompted slices.")
    max_pointers: int
    pointers_signed: bool = Field(description="Distance of a conditioning pointer has a sign.")
    pointers_past_only: bool = Field(description="Conditioning pointers from the future are left.")


class Sam2Graph(Record):
    """One file of a bundle."""

    graph: GraphName
    size_px: int = Field(description="S, the side of the square input.")
    file: ObjectRef
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]


class Sam2Gate(Record):
    """The worst figure that a gate saw, and its limit."""

    size_px: int
    gate: str
    found: float
    limit: float


class Sam2Bundle(Contract):
    """Graphs of one SAM-2 for one or more input sizes. Files lie beside this file."""

    schema_name: ClassVar[str] = "sssflow.sam2_bundle"

    variant: str = Field(description="nano, tiny, small, base_plus or large.")
    sam2_version: str
    precision: Precision
    weights_sha256: Sha256 = Field(pattern=SHA256_PATTERN)
    opset: int
    width: int = Field(description="C.")
    memory_width: int = Field(description="M.")
    rules: Sam2Rules
    graphs: tuple[Sam2Graph, ...] = Field(min_length=1)
    gates: tuple[Sam2Gate, ...] = Field(min_length=1)

    def sizes_px(self) -> tuple[int, ...]:
        """Input sizes that the bundle has graphs for, ascending."""
        return tuple(sorted({graph.size_px for graph in self.graphs}))

    def graph(self, name: GraphName, size_px: int) -> Sam2Graph:
        """One graph; KeyError if the bundle has none of that name and size."""
        for graph in self.graphs:
            if (graph.graph, graph.size_px) == (name, size_px):
                return graph
        raise KeyError(f"{name} {size_px}")


def graph_file(name: GraphName, size_px: int) -> str:
    """Where a graph lies in the folder of its bundle."""
    return f"{size_px}/{name}.onnx"


def graph_tensors(name: GraphName, size_px: int, width: int, memory_width: int) -> Tensors:
    """Inputs and outputs of a graph in order; a string in a shape names a free axis."""
    tables: dict[GraphName, Callable[[int, int, int], Tensors]] = {
        "encoder": _encoder,
        "decoder": _decoder,
        "memory_attention": _memory_attention,
        "memory_encoder": _memory_encoder,
    }
    return tables[name](size_px, width, memory_width)


def _tensor(
    name: str, shape: tuple[int | str, ...], meaning: str, dtype: str = "float32"
) -> TensorContract:
    return TensorContract(name=name, dtype=dtype, shape=shape, meaning=meaning)


def _features(batch: int | str, size_px: int, width: int) -> tuple[TensorContract, ...]:
    fine, middle, coarse = (size_px // stride for stride in (4, 8, 16))
    return (
        _tensor("feat_s0", (batch, width // 8, fine, fine), "Features at stride 4."),
        _tensor("feat_s1", (batch, width // 4, middle, middle), "Features at stride 8."),
        _embed(batch, coarse, width),
    )


def _embed(batch: int | str, tokens: int, width: int) -> TensorContract:
    meaning = "Features at stride 16 with the no-memory embedding added, as the encoder gives them."
    return _tensor("embed", (batch, width, tokens, tokens), meaning)


def _encoder(size_px: int, width: int, _memory_width: int) -> Tensors:
    image = _tensor("image", ("B", 3, size_px, size_px), "Images after mean and deviation.")
    return (image,), _features("B", size_px, width)


def _decoder(size_px: int, width: int, _memory_width: int) -> Tensors:
    cells = size_px // 4
    inputs = (
        *_features(1, size_px, width),
        _tensor("point_coords", ("L", "N", 2), "(x, y) input pixel indices."),
        _tensor(
            "point_labels",
            ("L", "N"),
            "1 inside, 0 outside, 2 and 3 box corners, -1 pad.",
            dtype="int32",
        ),
        _tensor("mask_input", ("L", 1, cells, cells), "Logits of a rough mask."),
        _tensor("has_mask", ("L",), "1 to use mask_input, 0 to ignore it."),
    )
    outputs = (
        _tensor("masks", ("L", 4, cells, cells), "Mask logits; above 0 is inside."),
        _tensor("iou", ("L", 4), "Predicted IoU of each mask."),
        _tensor("object_score", ("L", 1), "Logit that the object is there at all."),
        _tensor("mask_tokens", ("L", 4, width), "Decoder token of each mask, for memory."),
    )
    return inputs, outputs


def _memory_attention(size_px: int, width: int, memory_width: int) -> Tensors:
    tokens = size_px // 16
    inputs = (
        _embed("B", tokens, width),
        _tensor("memory", ("B", "T", memory_width, tokens, tokens), "Remembered slices."),
        _tensor("memory_slot", ("T",), "Row of the time code of each slice.", dtype="int64"),
        _tensor("pointers", ("B", "P", width), "Object pointers."),
        _tensor("pointer_time", ("P",), "Distance in slices over the most pointers minus 1."),
    )
    meaning = "What the decoder takes as `embed` on a tracked slice."
    return inputs, (_tensor("embed_with_memory", ("B", width, tokens, tokens), meaning),)


def _memory_encoder(size_px: int, width: int, memory_width: int) -> Tensors:
    tokens, cells = size_px // 16, size_px // 4
    inputs = (
        _embed("B", tokens, width),
        _tensor("mask", ("B", 1, cells, cells), "Logits of the mask that was chosen."),
        _tensor("object_score", ("B", 1), "From the decoder."),
        _tensor("mask_token", ("B", width), "Decoder token of that mask."),
    )
    outputs = (
        _tensor("memory", ("B", memory_width, tokens, tokens), "The slice, remembered."),
        _tensor("pointer", ("B", width), "Object pointer."),
    )
    return inputs, outputs
