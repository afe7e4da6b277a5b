"""Settings of the export stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sssflow.configuration import Config


class ExportConfig(Config):
    """From a trained student to an ONNX file that was proven to compute the same."""

    opset: Literal[18] = Field(18, description="ONNX operator set.")
    tolerance: float = Field(
        1e-4, gt=0, le=1e-2, description="Largest absolute difference of a logit from PyTorch."
    )
    second_scale: float = Field(
        1.5,
        gt=0,
        le=4,
        description="Parity is tested at the training size and at this multiple of it, rounded up "
        "to the network's stride.",
    )
    parity_cases: int = Field(
        2, ge=1, le=64, description="Cases whose slices are compared, validation cases first."
    )
    parity_slices: int = Field(
        4, ge=1, le=256, description="Slices of each such case, evenly spread."
    )
    intended_use: str = Field(
        "Research on medical image segmentation. Not a medical device; not for diagnosis or "
        "treatment.",
        min_length=1,
        max_length=2000,
        description="Written into the model card, the bundle and the ONNX file.",
    )
    licence: str = Field(
        "not recorded", max_length=200, description="Licence of the trained weights."
    )
