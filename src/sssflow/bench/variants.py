"""Named variants of a recipe: each one a few changed keys, so that each gets its own row."""

from __future__ import annotations

from importlib import resources
from typing import Any

from pydantic import Field

from sssflow.configuration import Config, parse_config, read_mapping
from sssflow.errors import UsageError

DEFAULT = "default"
_JOIN = "+"


class Variant(Config):
    """One named change of the recipe."""

    summary: str = Field(description="What it changes, in one sentence.")
    joins: tuple[str, ...] = Field((), description="Variants that it is made of, without joins.")
    set: dict[str, Any] = Field(
        {}, description="Dotted keys of the experiment to their values, over those joined."
    )
    changes_supervised: bool = Field(
        description="Whether supervised training differs too and so needs a baseline of its own."
    )
    beside: tuple[dict[str, Any], ...] = Field(
        (),
        description="Networks trained beside the first, each with keys of its own and another "
        "seed; measured is the mean of all probabilities.",
    )


class VariantTable(Config):
    """All shipped variants."""

    variants: dict[str, Variant] = Field(description="Name to variant.")


def shipped_variants() -> dict[str, Variant]:
    """Name to variant, `default` first."""
    with resources.as_file(resources.files("sssflow.bench") / "variants.yaml") as path:
        return parse_config(VariantTable, read_mapping(path), source=path.name).variants


def find_variant(name: str) -> Variant:
    """A shipped variant, or several joined by `+` (later ones win where they meet).

    Raises:
        UsageError: There is no such variant.
    """
    known = shipped_variants()
    parts = name.split(_JOIN)
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise UsageError(
            "There is no such variant.",
            expected=" | ".join(known) + f" (several joined by {_JOIN})",
            found=", ".join(unknown),
            action="`sssflow bench --list` shows what each one does.",
        )
    chosen = [known[name] for part in parts for name in (*known[part].joins, part)]
    return Variant(
        summary="; ".join(v.summary for v in chosen),
        set={key: value for v in chosen for key, value in v.set.items()},
        changes_supervised=any(v.changes_supervised for v in chosen),
        beside=tuple(keys for v in chosen for keys in v.beside),
    )
