"""Names of files that a contract can hold: contracts are UTF-8, names on a disk are any bytes."""

from __future__ import annotations

import os
from pathlib import Path

from sssflow.errors import DataError


def require_text_name(path: Path) -> None:
    """Refuse a path that is not UTF-8, as one that an old system wrote in Latin-1.

    Raises:
        DataError: With the bytes of the name, escaped.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # Escaped in every part: the message is printed and logged as UTF-8 too.
        raise DataError(
            "A name is not UTF-8, so it cannot be written down.",
            where=str(path).encode(errors="backslashreplace").decode(),
            expected="UTF-8",
            found=os.fsencode(path),
            action="Rename it; `convmv -f latin1 -t utf8 -r --notest FOLDER` does a whole folder.",
        ) from None
