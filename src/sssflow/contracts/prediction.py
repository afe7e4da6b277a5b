"""PredictionSet: masks that trained models made of scans without a dataset."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sssflow.contracts.base import Contract, ObjectRef, Record, Sha256


class PredictedScan(Record):
    """One mask, and the scan that it belongs to.

    Attributes:
        name: Of the scan's file.
        source_sha256: Of that file.
        labels: NIfTI on the grid of the scan.
        voxels: Class name to the number of its voxels, without the background.
        volumes_ml: The same in millilitres; None where the scan has no known voxel size.
    """

    name: str
    source_sha256: Sha256
    labels: ObjectRef
    voxels: dict[str, int]
    volumes_ml: dict[str, float] | None


class FailedScan(Record):
    """A scan that could not be segmented, and why."""

    name: str
    reason: str


class PredictionSet(Contract):
    """What the predict stage made, sorted by the names of the scans; paths are relative to it.

    `scans` are of all calls of these models and settings, `failed` of the last one.
    """

    schema_name: ClassVar[str] = "sssflow.predictions"

    model_digests: tuple[Sha256, ...] = Field(min_length=1)
    config_digest: Sha256
    class_names: tuple[str, ...]
    scans: tuple[PredictedScan, ...] = ()
    failed: tuple[FailedScan, ...] = ()
    begun: tuple[str, ...] = Field(
        (), description="Masks that were being written when a call ended; perhaps not there."
    )
    warnings: tuple[str, ...] = Field((), description="What the models' descriptions warn of.")
