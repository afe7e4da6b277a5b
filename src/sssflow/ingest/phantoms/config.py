"""What to draw, and what was drawn."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sssflow.configuration import Config
from sssflow.contracts.base import Contract

PHANTOM_VERSION = 1
"""Raised by every change that alters a voxel: results name the phantoms they were made on."""

IntRange = tuple[int, int]
FloatRange = tuple[float, float]


def _check_range(name: str, value: tuple[float, float], least: float, most: float) -> None:
    low, high = value
    if not least <= low <= high <= most:
        raise ValueError(f"{name} must be a range within {least}..{most}, lower end first")


class HeartConfig(Config):
    """Short-axis hearts in the layout of the original ACDC release."""

    in_plane_px: Annotated[
        IntRange, Field(description="Least and most pixels of a side; rows and columns differ.")
    ] = (96, 144)
    slices: Annotated[IntRange, Field(description="Least and most slices of a volume.")] = (5, 9)
    spacing_mm: Annotated[FloatRange, Field(description="In-plane pixel size, mm.")] = (1.3, 1.8)
    slice_mm: Annotated[FloatRange, Field(description="Distance between slices, mm.")] = (8.0, 10.0)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_range("in_plane_px", self.in_plane_px, 32, 512)
        _check_range("slices", self.slices, 3, 32)
        _check_range("spacing_mm", self.spacing_mm, 0.5, 5.0)
        _check_range("slice_mm", self.slice_mm, 2.0, 20.0)
        return self


class HeadConfig(Config):
    """Head CT with bleeds in the layout of BHSD."""

    in_plane_px: Annotated[
        IntRange, Field(description="Least and most pixels of a side; slices are square.")
    ] = (128, 160)
    slices: Annotated[IntRange, Field(description="Least and most slices of a volume.")] = (24, 40)
    slice_mm: Annotated[FloatRange, Field(description="Distance between slices, mm.")] = (4.5, 5.5)
    bleeds: Annotated[
        IntRange, Field(description="Least and most bleeds of a scan that bleeds.")
    ] = (1, 5)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        _check_range("in_plane_px", self.in_plane_px, 48, 512)
        _check_range("slices", self.slices, 8, 64)
        _check_range("slice_mm", self.slice_mm, 1.0, 10.0)
        _check_range("bleeds", self.bleeds, 1, 12)
        return self


class PhantomConfig(Config):
    """Procedural scans with true masks, for demos and tests."""

    kind: Annotated[
        Literal["hearts", "head_ct"], Field(description="What to draw, and in which layout.")
    ] = "hearts"
    patients: Annotated[
        int, Field(ge=1, le=999, description="Patients whose masks are written.")
    ] = 24
    unlabelled: Annotated[
        int,
        Field(ge=0, le=999, description="Further patients without masks (head_ct: with bleeds)."),
    ] = 0
    healthy: Annotated[
        int, Field(ge=0, le=999, description="Further unlabelled head CTs without any bleed.")
    ] = 0
    seed: Annotated[int, Field(ge=0, description="Equal seeds give equal files.")] = 0
    difficulty: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="0: clear and alike; 1: faint, noisy, and each patient different.",
        ),
    ] = 0.5
    hearts: Annotated[HeartConfig, Field(description="Sizes of hearts.")] = HeartConfig()
    head_ct: Annotated[HeadConfig, Field(description="Sizes of heads.")] = HeadConfig()

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if self.kind == "hearts" and self.healthy:
            raise ValueError("healthy scans exist for kind=head_ct only")
        if self.patients + self.unlabelled > 999:
            raise ValueError("patients + unlabelled must be at most 999")
        return self


class PhantomSummary(Contract):
    """What a run of the phantoms wrote; `phantoms.json` holds the same."""

    schema_name: ClassVar[str] = "PhantomSummary"

    version: Annotated[int, Field(description="PHANTOM_VERSION of the drawing code.")]
    kind: Annotated[str, Field(description="hearts or head_ct.")]
    seed: Annotated[int, Field(description="Seed of the run.")]
    patients: Annotated[tuple[str, ...], Field(description="Patients with masks, in order.")]
    unlabelled: Annotated[tuple[str, ...], Field(description="Patients without masks, in order.")]
    healthy: Annotated[tuple[str, ...], Field(description="Patients without any bleed, in order.")]
    config: Annotated[PhantomConfig, Field(description="The settings of the run.")]
