"""MaskSet: soft masks that a promptable model made from prompts.

Axis letters: k foreground classes (class 1 first), s slices, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator

from sssflow.contracts.base import (
    Contract,
    ObjectRef,
    Record,
    Sha256,
    require_known_classes,
)
from sssflow.errors import DataError


class ObjectScores(Record):
    """Scores of one object, one value per slice; None where the object was not segmented.

    Attributes:
        predicted_iou: The model's own estimate of the mask's IoU, 0 to 1.
        object_score: Logit that the object is on the slice; above 0 means present.
        prompted: Whether the slice held a prompt (else the mask came through memory).
    """

    class_index: int = Field(ge=1)
    predicted_iou: tuple[float | None, ...]
    object_score: tuple[float | None, ...]
    prompted: tuple[bool, ...]

    @model_validator(mode="after")
    def _has_a_value_per_slice(self) -> Self:
        if not len(self.predicted_iou) == len(self.object_score) == len(self.prompted):
            raise ValueError("one value per slice is needed")
        return self


class CaseMasks(Record):
    """Soft masks of one case.

    `probability_kshw` is a packed uint8 array, value / 255 = probability, on the case grid; a
    class without prompts is all zero and absent from `objects`.
    """

    case_id: str
    probability_kshw: ObjectRef
    objects: tuple[ObjectScores, ...] = ()


class MaskSet(Contract):
    """What the infer stage made. Cases are sorted by `case_id`; paths are relative to it."""

    schema_name: ClassVar[str] = "sssflow.masks"

    dataset_digest: Sha256
    prompt_digest: Sha256
    model_digest: Sha256 = Field(description="Of the SAM-2 weights.")
    backend: str = Field(description="torch | onnx | triton")
    config_digest: Sha256
    class_names: tuple[str, ...]
    cases: tuple[CaseMasks, ...]

    @model_validator(mode="after")
    def _objects_have_classes(self) -> Self:
        objects = [(c.case_id, [o.class_index for o in c.objects]) for c in self.cases]
        require_known_classes(self.class_names, objects)
        return self


def require_same_dataset(found: Sequence[Sha256], expected: Sha256, *, what: str) -> None:
    """Refuse prompts or masks that belong to another dataset.

    Raises:
        DataError: A digest differs.
    """
    for digest in found:
        if digest != expected:
            raise DataError(
                f"The {what} belong to another dataset.",
                expected=f"dataset digest {expected[:12]}…",
                found=f"{digest[:12]}…",
                action="Run the prompts and infer stages again on this dataset.",
            )
