"""Settings of the ingest stage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from sssflow.configuration import Config

Amount = StrictInt | StrictFloat
"""A whole number counts patients; a number below 1 is a share of the patients."""


class SplitConfig(Config):
    """Who is labelled, unlabelled, validation, test. Always by patient.

    The order of work: patients of the data set's own val and test lists take these roles; then
    `test` and `validation` take patients from the end of the remaining order; then `labelled`
    takes from its start; the rest is unlabelled. Patients without any mask are always unlabelled
    and are not counted.
    """

    order: Literal["list", "random"] = Field(
        "list",
        description="list: the data set's own order (its training list, else names); "
        "random: that order shuffled with `seed`.",
    )
    seed: int = Field(1337, ge=0, description="Seed of the shuffle; unused with order=list.")
    labelled: Amount | Literal["all"] = Field(
        0.1,
        description="Labelled patients: the first n (7), a share of the pool (0.1), or all.",
    )
    labelled_slices: int | None = Field(
        None,
        ge=1,
        description="SSL4MIS's rule instead of `labelled`: the patients of the first n lines of "
        "train_slices.list (32, 68, 136 = 1, 3, 7 patients); n must end with a patient.",
    )
    validation: Amount | None = Field(
        None,
        ge=0,
        description="Validation patients, from the end of the order: a number or a share. "
        "null: the data set's own list if it has one, else 0.1.",
    )
    test: Amount | None = Field(
        None,
        ge=0,
        description="Test patients, likewise. null: the data set's own list if it has one, "
        "else none.",
    )
    file: Path | None = Field(
        None,
        description="JSON file instead of all rules: {role: [patient ids]} (patients not named "
        "are unlabelled), or nnU-Net's splits_final.json (its val is validation, its train is "
        "the pool of `labelled`).",
    )
    fold: int = Field(0, ge=0, description="Which entry of a splits_final.json.")

    @model_validator(mode="after")
    def _amounts_are_counts_or_shares(self) -> Self:
        for name in ("labelled", "validation", "test"):
            value = getattr(self, name)
            if name == "labelled" and isinstance(value, int | float) and value <= 0:
                raise ValueError(f"labelled must be above 0, not {value}")
            if isinstance(value, float) and value >= 1:
                raise ValueError(f"{name} must be a whole number or a share below 1, not {value}")
        return self


class StoreConfig(Config):
    """How images are stored; labels are always stored without loss."""

    kind: Literal["lossless", "uint8"] = Field(
        "lossless",
        description="uint8: 256 steps of each volume's own window, for data sets that travel; "
        "with the intensity rules minmax, percentile and zscore only, not for CT.",
    )
    steps: int = Field(
        255,
        ge=15,
        le=255,
        description="uint8: largest stored value; 127 needs one bit per voxel less.",
    )
    low_pct: float = Field(
        0.0,
        ge=0,
        lt=50,
        description="uint8: this percentile becomes 0; 0: the least value. Above 0, and below 100 "
        "for `high_pct`, only a percentile rule that cuts as much may read the images.",
    )
    high_pct: float = Field(
        100.0,
        gt=50,
        le=100,
        description="uint8: this percentile becomes `steps`; 100: the largest.",
    )


class IngestConfig(Config):
    """From a folder of scans to a packed dataset."""

    layout: Literal["auto", "acdc", "bhsd", "la", "nnunet", "ssl4mis"] = Field(
        "auto", description="Folder layout; auto finds the only one that fits."
    )
    name: str = Field(
        "",
        max_length=128,
        description="Name of the dataset in the manifest; empty: name of the layout.",
    )
    split: SplitConfig = Field(SplitConfig(), description="Roles of the patients.")
    store: StoreConfig = Field(StoreConfig(), description="How images are stored.")
    patient_pattern: str = Field(
        "",
        max_length=256,
        description="nnunet: regular expression that matches the start of a case id; its group "
        "`patient` (or the whole match) is the patient id. Empty: every case is a patient.",
    )
    ct_units: Literal["auto", "hounsfield", "offset1024"] = Field(
        "auto",
        description="bhsd: how voxels are stored. auto decides per scan and refuses if unclear; "
        "offset1024 subtracts 1024.",
    )
    max_voxels: int = Field(
        1 << 27,
        ge=1,
        le=1 << 31,
        description="Largest accepted volume; checked before memory is taken for it.",
    )
    affine_tolerance_mm: float = Field(
        1e-3,
        ge=0,
        description="How far a voxel of a mask may lie from the same voxel of its image.",
    )
    copies: Literal["refuse_across_roles", "refuse", "note"] = Field(
        "refuse_across_roles",
        description="The same image (also flipped or turned) under several patients: refuse if "
        "their roles differ, refuse always, or only note it. ACDC holds such a pair.",
    )
