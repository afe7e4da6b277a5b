"""Files that end: opening a named pipe waits for ever, and a device never ends."""

from __future__ import annotations

from pathlib import Path

from sssflow.errors import DataError


def require_plain_file(path: Path) -> None:
    """Refuse what is there and is neither a file nor a folder, without opening it.

    What is missing, a folder, or may not be looked at is left to the reader, which has its own
    words.

    Raises:
        DataError: A pipe, a socket or a device.
    """
    try:
        special = path.exists() and not (path.is_file() or path.is_dir())
    except OSError:  # such as a name that is too long
        return
    if special:
        raise DataError(
            "The name stands for a pipe, a socket or a device.",
            where=path,
            expected="a file",
            action="Remove it, or put the file there.",
        )
