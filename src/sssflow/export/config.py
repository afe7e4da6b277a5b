"""Settings of the export stage."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sssflow.configuration import Config
from sssflow.contracts.sam2_graphs import Precision
from sssflow.sam.config import SamSize, SamVersion


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


class Sam2ExportConfig(Config):
    """From SAM-2 weights to ONNX graphs that were proven to compute the same."""

    size: SamSize = Field("nano", description="nano, or one of the four official sizes.")
    version: SamVersion = Field("2.1", description="Version of the official model; nano is 2.1.")
    weights: str | None = Field(
        None,
        description="Checkpoint (.pt) or safetensors file; null: the packaged weights (nano only).",
    )
    sizes_px: tuple[int, ...] = Field(
        (256, 512, 1024), min_length=1, max_length=8, description="Sides of the square input."
    )
    precision: Precision = Field(
        "fp32",
        description="fp32; fp16: half precision; bf16: bfloat16 weights, fp32 arithmetic; int8: "
        "matrix products by dynamic quantisation. Inputs and outputs stay fp32.",
    )
    dice_tolerance: float = Field(
        1e-3,
        gt=0,
        le=0.1,
        description="Other precisions than fp32: how much lower the mean Dice may be.",
    )
    flip_tolerance: float = Field(
        1e-3,
        gt=0,
        le=0.1,
        description="Other precisions than fp32: share of the mask pixels that may change sides.",
    )
    iou_tolerance: float = Field(
        0.02,
        gt=0,
        le=0.1,
        description="Other precisions than fp32: mean error of the predicted IoU.",
    )
    gate_clips: int = Field(
        12,
        ge=1,
        le=1000,
        description="Other precisions than fp32: clips of three slices that are compared.",
    )
    seed: int = Field(0, ge=0, description="Of what the gates compare.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if any(side % 32 or not 64 <= side <= 2048 for side in self.sizes_px):
            raise ValueError("sizes_px must be multiples of 32, from 64 to 2048")
        if len(set(self.sizes_px)) != len(self.sizes_px):
            raise ValueError("sizes_px must differ from each other")
        return self
