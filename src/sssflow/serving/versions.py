"""The version folders of a model in a repository."""

from __future__ import annotations

import shutil
from pathlib import Path


def versions(folder: Path) -> list[int]:
    """Numbers of the version folders of a model that a server would see, ascending."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isdigit() and not name.startswith("0"))


def drop_other_versions(folder: Path, kept: int) -> None:
    """Remove every version of a model but one: a server takes the highest, whoever wrote it."""
    for version in versions(folder):
        if version != kept:
            shutil.rmtree(folder / str(version))
