"""Settings of the prompts stage, with the two readings of PCSW as presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from sssflow.configuration import Config, over_preset
from sssflow.contracts.dataset import Role

PresetName = Literal["recommended", "fragment"]

_FRAGMENT: Final[Mapping[str, Any]] = {
    "connectivity": 6,
    "selection": "first",
    "prompt_slices": "single",
    "point": "center",
    "on_empty": "full_box",
}


class PcswConfig(Config):
    """Physical Constraints with a Sliding Window (SSS, arXiv 2506.08949).

    `preset` sets what the other keys are when they are not given: `recommended` is our decision
    on each point that the public material leaves open, `fragment` is what the authors' code
    fragment does (6-connectivity, first window, one prompted slice, centre point, whole-image box
    on an empty volume), per class and without its errors.
    """

    preset: PresetName = Field("recommended", description="Defaults of all other keys.")
    tau: float = Field(0.8, gt=0, le=1, description="Continuity that accepts a window.")
    tau_per_class: dict[str, float] = Field(
        default_factory=dict,
        description="Class name or index to its own tau; multi-focal lesions need a lower one.",
    )
    search: Literal["upward", "both"] = Field(
        "upward",
        description="Window lengths in order: median to longest; or median, +1, -1, +2, -2 …",
    )
    selection: Literal["best", "first"] = Field(
        "best", description="Highest continuity, or the first accepted window of the search."
    )
    best_over: Literal["length", "all"] = Field(
        "length",
        description="best: among the windows of the first length that has an accepted one, or "
        "among the windows of all searched lengths.",
    )
    connectivity: Literal[6, 18, 26] = Field(26, description="Neighbours of a voxel.")
    prompt_slices: Literal["every", "single"] = Field(
        "every", description="Every prompt_freq-th slice, or the slice of largest area alone."
    )
    prompt_freq: int = Field(
        2, ge=1, description="Step between prompted slices, counted from that of largest area."
    )
    box_margin_px: int = Field(0, ge=0, description="Added on each side, clipped to the image.")
    point: Literal["interior", "center", "none"] = Field(
        "interior", description="Deepest pixel of the object, centre of its box, or no point."
    )
    fallback: Literal["largest_slice", "skip"] = Field(
        "largest_slice", description="What to do where a class is present but no window passes."
    )
    on_empty: Literal["skip", "full_box"] = Field(
        "skip",
        description="What to do where a class is absent; full_box prompts the whole middle slice.",
    )
    min_component_voxels: int = Field(
        1,
        ge=1,
        description="Voxels that the largest component of a window needs, or in the fallback that "
        "of a slice; without them there is no prompt.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("preset") == "fragment":
            return over_preset(cls, data, "fragment", _FRAGMENT)
        return data

    @model_validator(mode="after")
    def _tau_values_are_shares(self) -> Self:
        for name, tau in self.tau_per_class.items():
            if not 0 < tau <= 1:
                raise ValueError(f"tau of class {name} must lie in (0, 1], found {tau}")
        return self


class PromptConfig(Config):
    """The prompts stage: coarse masks of a trained model become prompts for SAM-2."""

    pcsw: PcswConfig = Field(default_factory=PcswConfig, description="From masks to prompts.")
    roles: tuple[Role, ...] = Field(
        (Role.UNLABELLED,),
        min_length=1,
        description="Which cases get prompts; no label of any role is ever read.",
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:<n>")
    batch_slices: int = Field(8, ge=1, le=1024, description="Slices per forward pass.")


class SimulateConfig(Config):
    """Prompts from a true mask, for pre-training and for the true-box yardstick."""

    box: bool = Field(True, description="Give the bounding box.")
    box_jitter: float = Field(
        0.0, ge=0, le=0.5, description="Each side moves by up to this share of the box's extent."
    )
    positive_points: int = Field(
        1, ge=0, le=16, description="First the deepest pixel, then random ones inside."
    )
    negative_points: int = Field(
        0, ge=0, le=16, description="Random pixels outside, near the object."
    )
    prompt_freq: int = Field(2, ge=1, description="Step between prompted slices.")
    min_pixels: int = Field(1, ge=1, description="Slices with a smaller object get no prompt.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.box and self.positive_points == 0:
            raise ValueError("a prompt needs a box or a positive point")
        return self


class ReliableConfig(Config):
    """Prompts from where a specialist is sure of itself (SemiSAM)."""

    positive_points: int = Field(
        3, ge=1, le=16, description="First the deepest confident pixel, then random ones."
    )
    negative_points: int = Field(
        1, ge=0, le=16, description="Random pixels of the confident background near the object."
    )
    margin_share: float = Field(
        0.25, ge=0, le=4, description="How near: share of the object's longest side."
    )
    box_margin_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="What a box has more on each side, clipped to the image: share of the longest "
        "side of the confident piece, rounded up to pixels; the unsure rim of an object lies "
        "outside that piece.",
    )
    min_pixels: int = Field(
        16, ge=1, description="Fewer confident pixels of an object: it is not prompted."
    )
    max_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="An object larger than this share of the image is not prompted.",
    )
