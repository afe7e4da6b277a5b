"""Read and write contract files: atomic on the way out, checked on the way in."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from sssflow.contracts.base import Contract
from sssflow.errors import DataError
from sssflow.storage.atomic import write_text
from sssflow.storage.plain_file import require_plain_file

K = TypeVar("K", bound=Contract)


def save_contract(contract: Contract, path: Path) -> Path:
    """Write `contract` atomically to `path` and return the path."""
    write_text(path, contract.to_json())
    return path


def load_contract(kind: type[K], path: Path) -> K:
    """Read a contract of the given kind.

    Raises:
        DataError: The file is missing, no plain file, or not a contract of this kind and version.
    """
    require_plain_file(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The {kind.schema_name} cannot be read.",
            where=path,
            found=error.strerror,
            action="Check the path, or run the stage that writes it.",
        ) from None
    return kind.from_json(text, where=path)
