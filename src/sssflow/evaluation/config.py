"""Settings of the evaluate stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sssflow.configuration import Config
from sssflow.contracts.dataset import Role
from sssflow.contracts.model import SlidingWindow

MeasuredRole = Literal[Role.LABELLED, Role.VALIDATION, Role.TEST]


class ReportConfig(Config):
    """What the report page shows."""

    title: str = Field("Segmentation report", max_length=120, description="Heading of the page.")
    data_note: str = Field(
        "", max_length=500, description="A sentence on the data, shown with the caveats."
    )
    viewer_cases: int = Field(
        8, ge=0, le=40, description="Cases in the slice viewer: worst, median and best ones."
    )
    viewer_slices: int = Field(
        32, ge=1, le=200, description="Slices per case in the viewer; more are thinned evenly."
    )
    viewer_side_px: int = Field(
        256, ge=64, le=512, description="Longest side of a slice in the viewer."
    )
    size_limit_mb: float = Field(
        4.8, ge=0.05, le=50, description="Cases leave the viewer until the page is below this."
    )


class EvaluateConfig(Config):
    """Which cases are measured, how, and how the uncertainty is told."""

    roles: tuple[MeasuredRole, ...] = Field(
        (), description="Roles to measure; empty: test if there are any, else validation."
    )
    nsd_tolerances_mm: tuple[Annotated[float, Field(gt=0, le=50)], ...] = Field(
        (2.0, 4.0),
        min_length=1,
        max_length=4,
        description="Tolerances of NSD in mm (in voxels where the source stores no spacing).",
    )
    bootstrap_resamples: int = Field(
        10_000, ge=100, le=1_000_000, description="Resamples of the patients per interval."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    permutation_flips: int = Field(
        10_000,
        ge=100,
        le=1_000_000,
        description="Sign flips of the paired test above 12 patients; up to 12 all are counted.",
    )
    seed: int = Field(1337, ge=0, description="Seed of the bootstrap and of the sign flips.")
    batch_slices: int = Field(8, ge=1, le=512, description="Slices per forward pass.")
    window: SlidingWindow | None = Field(
        None, description="3-D models: how patches cover a volume; none: as each model says."
    )
    test_time_flips: bool = Field(
        False, description="Average the probabilities of the four in-plane mirror images."
    )
    largest_component: bool = Field(
        False, description="Keep of every class its largest piece; for organs, not for lesions."
    )
    average: bool = Field(
        False, description="Measure the mean of all models' probabilities too, as model `average`."
    )
    allow_seen: bool = Field(
        False,
        description="Measure a model on cases whose labels it was trained on, which else is "
        "refused; the report says so on top.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<n>.")
    write_nifti: bool = Field(
        False, description="Write predictions as NIfTI on the grid of the source file too."
    )
    worst_cases: int = Field(10, ge=0, le=100, description="Overlay pictures of the worst cases.")
    median_cases: int = Field(4, ge=0, le=12, description="Cases in the montage of median ones.")
    report: ReportConfig = Field(ReportConfig(), description="The report page.")
