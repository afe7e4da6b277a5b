"""Cells of the tables: numbers, intervals, label counts, and the lines that hold them."""

from __future__ import annotations

from collections.abc import Sequence

from sssflow.bench.protocol import Protocol
from sssflow.bench.scores import Estimate
from sssflow.contracts.evaluation import p_number

DASH = "–"


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line; a bar inside a cell becomes a slash."""
    lines = [" | ".join(head), "|".join(" --- " for _ in head)]
    lines += [" | ".join(cell.replace("|", "/") for cell in row) for row in rows]
    return [f"| {line.strip()} |" for line in lines]


def estimate(found: Estimate, scale: float, *, signed: bool = False) -> str:
    """Mean and interval with two decimals, times `scale`; a dash where there is no mean."""
    if found.value is None:
        return DASH
    sign = "+" if signed else ""
    text = f"{scale * found.value:{sign}.2f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} ({scale * found.low:{sign}.2f} to {scale * found.high:{sign}.2f})"


def number(value: float | None, scale: float, digits: int = 2) -> str:
    """`value` times `scale`; a dash for None."""
    return DASH if value is None else f"{scale * value:.{digits}f}"


def plain(value: float | None) -> str:
    """A number as its source gives it; a dash for None."""
    return DASH if value is None else f"{value:g}"


def p_cell(value: float | None) -> str:
    """A p-value with three decimals, never as 0; a dash where there is none."""
    return DASH if value is None else p_number(value)


def amount(labelled: int | float, protocol: Protocol) -> str:
    """What is labelled: a count of the protocol's unit, or a share."""
    if isinstance(labelled, float):
        return f"{100 * labelled:g} %"
    return f"{labelled} {protocol.unit}"
