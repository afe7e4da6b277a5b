"""Known folder layouts: one file each, one table, and detection that never guesses."""

from __future__ import annotations

from pathlib import Path

from sssflow.errors import DataError
from sssflow.ingest.layouts import acdc, bhsd, la, nnunet, ssl4mis
from sssflow.ingest.layouts.base import Layout

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (acdc.LAYOUT, bhsd.LAYOUT, la.LAYOUT, nnunet.LAYOUT, ssl4mis.LAYOUT)
}


def find_layout(name: str, root: Path) -> Layout:
    """The named layout, or with `auto` the only one that fits the folder.

    Raises:
        DataError: The folder is missing or empty, or none or several layouts fit.
    """
    _check_root(root)
    if name != "auto":
        return LAYOUTS[name]
    fitting = [layout for layout in LAYOUTS.values() if layout.matches(root)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(layout.name for layout in fitting) or "none of them"
    trees = "\n".join(f"[{layout.name}]\n{layout.tree}" for layout in LAYOUTS.values())
    raise DataError(
        "The folder does not fit exactly one known layout.",
        where=root,
        expected=f"one of these trees:\n{trees}",
        found=found,
        action="Point to the right folder, or name the layout with --set ingest.layout=NAME.",
    )


def _check_root(root: Path) -> None:
    try:
        empty = not any(root.iterdir())
    except OSError as error:
        raise DataError(
            "The source folder cannot be read.",
            where=root,
            expected="a folder with scans",
            found=error.strerror,
            action="Check the path and the rights of this user.",
        ) from None
    if empty:
        raise DataError(
            "The source folder is empty.",
            where=root,
            expected="a folder with scans",
            action="Check the path; an unmounted disk looks like this too.",
        )
