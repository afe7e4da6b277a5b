"""EvaluationSummary: how good each model is, by how much the last beats the first, and how sure."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from sssflow.contracts.base import Contract, ObjectRef, Record, Sha256


class Figure(Record):
    """One number with its interval.

    Attributes:
        value: The mean; None where no case defines it.
        low: Lower end of the interval; None with fewer than two patients that have a score.
        high: Upper end.
        count: Number of (case, class) values behind the mean.
        excluded: Number of values left out because truth and prediction are both empty.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = Field(0, ge=0)
    excluded: int = Field(0, ge=0)


class ModelFigures(Record):
    """The headline figures of one model.

    Keys of `strict`, `ssl4mis` and of the inner maps of `per_class`: metric names with their
    unit, for example `dice`, `hd95_pooled_mm`, `nsd_2mm`. `per_class` is keyed by class name and
    holds the strict convention.
    """

    name: str
    model_digest: Sha256
    method: str
    step: int = Field(ge=0)
    strict: dict[str, Figure]
    ssl4mis: dict[str, Figure]
    per_class: dict[str, dict[str, Figure]]


class PairedGain(Record):
    """Headline minus baseline on the same patients, in the unit of `metric`.

    `p_value` is two-sided; None with fewer than two patients.
    """

    metric: str
    baseline: str
    headline: str
    gain: float
    low: float | None
    high: float | None
    p_value: float | None = Field(ge=0, le=1)
    test: str = Field(description="Name of the test and of the interval, in words.")
    patients: int = Field(ge=1)


class MaskQuality(Record):
    """SAM-2 masks against the coarse masks that prompted them, on cases that have a truth.

    Dice is the strict foreground mean. `coarse` and `gain` are None where the prompts carry no
    coarse masks.
    """

    masks: str = Field(description="Name of the mask set: its digest, shortened, and backend.")
    cases: int = Field(ge=1)
    sam2: Figure
    coarse: Figure | None = None
    gain: PairedGain | None = None


class EvaluationSummary(Contract):
    """What the evaluate stage found. All files lie below the folder of this file.

    `files` holds at least `summary`, `cases` and `report`; `overlays` the pictures.
    """

    schema_name: ClassVar[str] = "sssflow.evaluation"

    dataset_name: str
    dataset_digest: Sha256
    split_rule: str
    roles: tuple[str, ...] = Field(min_length=1, description="Roles of the measured cases.")
    cases: int = Field(ge=1)
    patients: int = Field(ge=1)
    distance_unit: Literal["mm", "voxel"]
    class_names: tuple[str, ...]
    config: dict[str, Any]
    config_digest: Sha256
    versions: dict[str, str]
    conventions: dict[str, str] = Field(description="What each convention means, in words.")
    models: tuple[ModelFigures, ...] = Field(min_length=1)
    gain: PairedGain | None = Field(None, description="None with one model only.")
    sam2: tuple[MaskQuality, ...] = ()
    files: dict[str, ObjectRef]
    overlays: tuple[ObjectRef, ...] = ()
    predictions: dict[str, dict[str, ObjectRef]] = Field(
        {}, description="Model name, then case id, to the packed label array."
    )
    notes: tuple[str, ...] = ()


def p_text(value: float | None) -> str:
    """A p-value as `p = 0.031` or `p < 0.001`."""
    if value is None:
        return "no test"
    return f"p {p_number(value)}" if value < 0.001 else f"p = {p_number(value)}"


def p_number(value: float) -> str:
    """A p-value with three decimals, never as 0: `0.031` or `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
