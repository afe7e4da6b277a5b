"""Published figures, each with its source and with how its checkpoint was chosen."""

from __future__ import annotations

from importlib import resources

from pydantic import Field

from sssflow.configuration import Config, parse_config, read_mapping

_TOLERANCE = 0.02
"""Published figures are rounded to two decimals of a per cent."""


class PublishedRow(Config):
    """One published result; Dice and Jaccard in per cent, distances as the source gives them."""

    method: str = Field(description="Name in the source.")
    labelled: int | float | None = Field(
        description="Patients or scans, or a share of them; null: not known."
    )
    dice: float = Field(gt=0, lt=100, description="Per cent.")
    jaccard: float | None = Field(None, gt=0, lt=100, description="Per cent.")
    hd95: float | None = Field(None, ge=0, description="Voxels unless the note says otherwise.")
    asd: float | None = Field(None, ge=0, description="Likewise.")
    selection: str = Field(description="How the scored checkpoint was chosen.")
    source: str = Field(description="Where the figure was read.")
    note: str = Field("", description="What makes it incomparable, if anything.")


class PublishedTable(Config):
    """All of them, by data set."""

    sets: dict[str, tuple[PublishedRow, ...]] = Field(description="Section to rows.")


def published_sections() -> tuple[str, ...]:
    """Names of the sections that are shipped."""
    return tuple(_shipped())


def published_rows(section: str) -> tuple[PublishedRow, ...]:
    """The rows of a section, each broken one marked; empty for an empty name."""
    if not section:
        return ()
    rows = _shipped()[section]
    return tuple(
        row if is_plausible(row) else row.model_copy(update={"method": f"{row.method} †"})
        for row in rows
    )


def _shipped() -> dict[str, tuple[PublishedRow, ...]]:
    with resources.as_file(resources.files("sssflow.bench") / "published.yaml") as path:
        return parse_config(PublishedTable, read_mapping(path), source=path.name).sets


def is_plausible(row: PublishedRow) -> bool:
    """Whether mean J >= D / (2 - D), which holds for any means over the same masks (Jensen)."""
    if row.jaccard is None:
        return True
    dice = row.dice / 100
    return row.jaccard >= 100 * dice / (2 - dice) - _TOLERANCE
