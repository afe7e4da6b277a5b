"""Write the table of values in each chart's README.md from its schema and its defaults.

Run it after a change of values.yaml or values.schema.json; a test compares. With `--check` nothing
is written and a difference is exit 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "charts"
START = "<!-- values: written by tools/charts.py -->\n"


def rows(schema: dict[str, Any], values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """One line of the table per value; a map of fixed keys is a line with its own below it."""
    for key, value in values.items():
        below, name = schema["properties"][key], f"{prefix}{key}"
        fixed = below.get("additionalProperties") is False
        default = "" if fixed else f"`{json.dumps(value)}`".replace("|", "\\|")
        text = below["description"].replace("|", "\\|")
        if "enum" in below:
            text += f" One of {', '.join(f'`{word}`' for word in below['enum'] if word)}."
        yield f"| `{name}` | {default} | {text} |"
        if fixed:
            yield from rows(below, value, f"{name}.")


def page(chart: Path) -> str:
    """README.md as it should be: the written part, then the table."""
    schema = json.loads((chart / "values.schema.json").read_text("utf-8"))
    values = yaml.safe_load((chart / "values.yaml").read_text("utf-8"))
    written = (chart / "README.md").read_text("utf-8").split(START)[0]
    table = ["", "| value | default | meaning |", "| --- | --- | --- |", *rows(schema, values)]
    return written + START + "\n".join(table) + "\n"


def main() -> None:
    """Write, or with `--check` compare."""
    stale = [c for c in charts() if page(c) != (c / "README.md").read_text("utf-8")]
    if "--check" in sys.argv:
        sys.exit(f"run tools/charts.py: {[c.name for c in stale]}" if stale else 0)
    for chart in stale:
        (chart / "README.md").write_text(page(chart), encoding="utf-8")


def charts() -> list[Path]:
    """Folders of all charts."""
    return sorted(path.parent for path in FOLDER.glob("*/Chart.yaml"))


if __name__ == "__main__":
    main()
