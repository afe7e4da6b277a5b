"""TrainedModel: weights plus everything that is needed to use them the way they were trained."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from sssflow.contracts.base import Contract, ObjectRef, Record, Sha256


class IntensityRule(Record):
    """How raw voxel values become network input, computed per volume (never across cases).

    minmax: volume minimum to 0, maximum to 1 (SSL4MIS's ACDC rule).
    percentile: `low_pct` to 0, `high_pct` to 1, clipped.
    zscore: (v - mean) / std of the volume (UA-MT's LA rule).
    window: `window_low` to 0, `window_high` to 1, clipped (CT, Hounsfield units).
    none: values as stored.
    """

    kind: Literal["minmax", "percentile", "zscore", "window", "none"] = Field(
        "percentile", description="How raw voxel values become network input, per volume."
    )
    low_pct: float = Field(0.5, ge=0, le=100, description="percentile: becomes 0.")
    high_pct: float = Field(99.5, ge=0, le=100, description="percentile: becomes 1.")
    window_low: float = Field(0.0, description="window: becomes 0 (CT: Hounsfield units).")
    window_high: float = Field(80.0, description="window: becomes 1.")


class Preprocessing(Record):
    """From a raw volume to network input: intensity rule, then each slice resized to `size_hw`."""

    intensity: IntensityRule = Field(IntensityRule(), description="Rule of the voxel values.")
    size_hw: tuple[int, int] = Field((256, 256), description="Rows and columns of the input.")
    image_interpolation: Literal["linear", "nearest"] = Field(
        "linear", description="How slices are resized."
    )
    prediction_interpolation: Literal["linear", "nearest"] = Field(
        "linear", description="linear: logits go back to the case grid; nearest: labels do."
    )


class TrainedModel(Contract):
    """A student ready for use. `weights` is a safetensors file beside this file."""

    schema_name: ClassVar[str] = "sssflow.model"

    network: dict[str, Any] = Field(description="What networks.registry builds the net from.")
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    weights: ObjectRef
    dataset_digest: Sha256
    method: str
    step: int = Field(ge=0)
