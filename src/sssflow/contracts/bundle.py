"""ModelBundle: an exported model, the contract of its tensors, the proof that it is right."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sssflow.contracts.base import Contract, ObjectRef, Record, Sha256
from sssflow.contracts.model import Preprocessing


class TensorContract(Record):
    """Name, dtype and shape of one tensor; a string in `shape` names a free dimension."""

    name: str
    dtype: str = Field(pattern=r"^(float32|int32|int64|uint8)$")
    shape: tuple[int | str, ...]
    meaning: str


class ParityFigure(Record):
    """One comparison of the exported graph with PyTorch on the same input."""

    shape: tuple[int, ...]
    source: str = Field(description="Which slices the input came from.")
    max_abs_difference: float
    tolerance: float
    masks_equal: bool


class ModelBundle(Contract):
    """An exported student. All files lie beside this file."""

    schema_name: ClassVar[str] = "sssflow.bundle"

    onnx: ObjectRef
    model_card: ObjectRef
    opset: int
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    spacing_shw_mm: tuple[float, float, float] | None = Field(
        description="Median spacing of the training cases; None where the source stores none."
    )
    parity: tuple[ParityFigure, ...] = Field(min_length=1)
    model_digest: Sha256
    dataset_digest: Sha256
    intended_use: str
