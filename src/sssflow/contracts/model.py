"""TrainedModel: weights plus everything that is needed to use them the way they were trained."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

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

    @model_validator(mode="after")
    def _ends_leave_something_between(self) -> Self:
        ends = {
            "percentile": ("low_pct", "high_pct"),
            "window": ("window_low", "window_high"),
        }
        low, high = ends.get(self.kind, ("", ""))
        if low and not getattr(self, low) < getattr(self, high):
            raise ValueError(
                f"{low} {getattr(self, low):g} must be below {high} {getattr(self, high):g}: every "
                "image would become one grey value"
            )
        return self


Size = Annotated[int, Field(ge=1, le=4096)]
Scale = Annotated[float, Field(gt=0.05, le=8)]


class SlidingWindow(Record):
    """How the patches of a 3-D network cover a volume at prediction.

    Softmax probabilities of overlapping patches are averaged with the weights.
    """

    overlap: float = Field(
        0.5, ge=0, lt=1, description="Share of a patch that the next one covers again."
    )
    stride_shw: tuple[Size, Size, Size] | None = Field(
        None,
        description="Voxels between patches instead of overlap; SSL4MIS's test on LA: [4, 18, 18].",
    )
    weights: Literal["gaussian", "uniform"] = Field(
        "gaussian", description="gaussian: borders count less (nnU-Net); uniform: SSL4MIS."
    )


class PatchRule(Record):
    """Network input of a 3-D network: patches of the volume instead of resized slices."""

    size_shw: tuple[Size, Size, Size] = Field(
        (80, 112, 112), description="Slices, rows and columns of a patch; UA-MT on LA: 80x112x112."
    )
    scale_shw: tuple[Scale, Scale, Scale] = Field(
        (1.0, 1.0, 1.0), description="Factor on the volume's sides before patches are cut."
    )
    window: SlidingWindow = Field(SlidingWindow(), description="Prediction of a whole volume.")


class Preprocessing(Record):
    """From a raw volume to network input.

    First the intensity rule; then, for a 2-D network, each slice is resized to `size_hw`; for a
    3-D network (`patch` is given, `size_hw` unused) the volume is scaled, padded with zeros where
    it is smaller than a patch, and cut into patches.
    """

    intensity: IntensityRule = Field(IntensityRule(), description="Rule of the voxel values.")
    size_hw: tuple[int, int] = Field((256, 256), description="Rows and columns of the input.")
    image_interpolation: Literal["linear", "nearest"] = Field(
        "linear", description="How slices are resized, and volumes scaled."
    )
    prediction_interpolation: Literal["linear", "nearest"] = Field(
        "linear",
        description="linear: logits (3-D: probabilities) go back to the case grid; nearest: "
        "labels do.",
    )
    patch: PatchRule | None = Field(None, description="3-D networks only; else none.")


class SeenImages(Record):
    """SHA-256 digests of the packed images that a model's weights depend on; sorted, each once."""

    labelled: tuple[Sha256, ...] = Field((), description="It learned from them and their labels.")
    unlabelled: tuple[Sha256, ...] = Field((), description="It learned from them without labels.")
    selection: tuple[Sha256, ...] = Field((), description="They chose the step that was kept.")


class TrainedModel(Contract):
    """A student ready for use. `weights` is a safetensors file beside this file.

    Without `seen` the file is an older one: it is written, and has its digest, as before.
    """

    schema_name: ClassVar[str] = "sssflow.model"

    network: dict[str, Any] = Field(description="What networks.registry builds the net from.")
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    weights: ObjectRef
    dataset_digest: Sha256
    method: str
    step: int = Field(ge=0)
    warnings: tuple[str, ...] = Field(
        (), description="What every reader of its figures must be told, such as leaked labels."
    )
    seen: SeenImages | None = Field(None, description="None: an older file, which does not say.")

    def _tagged(self) -> dict[str, Any]:
        tagged = super()._tagged()
        if self.seen is None:
            del tagged["seen"]
        return tagged
