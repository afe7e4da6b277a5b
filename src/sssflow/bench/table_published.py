"""Published figures beside ours, each with how its checkpoint was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sssflow.bench.cells import DASH, amount, number, plain, table_lines
from sssflow.bench.protocol import Protocol
from sssflow.bench.published import PublishedRow
from sssflow.bench.scores import METRICS, STRICT_DISTANCES, Estimate, GroupRow

_HEAD = ("labelled", "row", "Dice", "Jaccard", "HD95", "ASD", "checkpoint chosen by", "source")
_UNKNOWN = "not known"
_ASD = {"ssl4mis": "", "strict": " (its ASD is over both directions)"}


def published_lines(
    protocol: Protocol, rows: Sequence[GroupRow], published: Sequence[PublishedRow]
) -> list[str]:
    """The section of the page; empty where nothing is published.

    A published row is shown if its label count is among `rows`, and also if no run of the protocol
    could have it: ceilings with every label, counts of other splits.
    """
    if not published:
        return []
    prefix = "ssl4mis" if protocol.convention == "ssl4mis" else "strict"
    ran = {row.labelled for row in rows}
    shown = [e for e in published if e.labelled in ran or e.labelled not in protocol.labelled]
    cells = [(float(row.labelled), 0, _ours(protocol, row, prefix)) for row in rows]
    cells += [(_place(entry), 1, _theirs(protocol, entry)) for entry in shown]
    ordered = [line for *_, line in sorted(cells, key=lambda item: item[:2])]
    return [
        "## Published and ours",
        "",
        f"Ours in the convention `{prefix}`{_ASD[prefix]}. Published figures are what their "
        "source reports; a checkpoint chosen on the reported cases flatters. Counts that the "
        "protocol does not offer are shown for orientation. †: the figures break mean J ≥ "
        "D / (2 − D) and cannot both be means over the same masks.",
        "",
        *table_lines(_HEAD, ordered),
        "",
    ]


def _place(entry: PublishedRow) -> float:
    return math.inf if entry.labelled is None else float(entry.labelled)


def _ours(protocol: Protocol, row: GroupRow, prefix: str) -> list[str]:
    names = _quad(row.figures, prefix)
    found = [row.figures.get(name, Estimate(None)) for name in names]
    numbers = [number(f.value, scale) for f, scale in zip(found, (100, 100, 1, 1), strict=True)]
    if names[-1].endswith("_mm"):
        numbers[2:] = [text if text == DASH else f"{text} mm" for text in numbers[2:]]
    name = f"**ours: {row.method}, {row.variant}** ({len(row.seeds)} seeds)"
    selection = row.results[0].selection
    return [amount(row.labelled, protocol), name, *numbers, selection, "this table"]


def _theirs(protocol: Protocol, entry: PublishedRow) -> list[str]:
    count = _UNKNOWN if entry.labelled is None else amount(entry.labelled, protocol)
    numbers = [plain(value) for value in (entry.dice, entry.jaccard, entry.hd95, entry.asd)]
    source = f"{entry.source}{'; ' + entry.note if entry.note else ''}"
    return [count, entry.method, *numbers, entry.selection, source]


def _quad(figures: Mapping[str, Estimate], prefix: str) -> tuple[str, ...]:
    """Names of Dice, Jaccard, HD95 and ASD; the strict distances in the unit that is there."""
    if prefix == "ssl4mis":
        return tuple(name for name in METRICS if name.startswith(prefix))
    distances = (next((n for n in figures if n.startswith(d)), d) for d in STRICT_DISTANCES)
    return ("strict_dice", "strict_iou", *distances)
