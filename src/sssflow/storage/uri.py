"""From URI to path, without leaving the folder that a contract owns."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

from sssflow.errors import DataError, UsageError


def resolve(uri: str, *, base: Path) -> Path:
    """Local path of `uri`; a relative one is taken from `base` and may not climb out of it.

    Raises:
        DataError: A relative URI leaves `base`.
        UsageError: A scheme other than `file`.
    """
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    if parsed.scheme:
        raise UsageError(
            "This address cannot be read here.", where=uri, expected="file:// or a relative path"
        )
    relative = PurePosixPath(uri)
    if relative.is_absolute() or ".." in relative.parts or "\x00" in uri:
        raise DataError(
            "A manifest names a file outside its own folder.",
            where=uri,
            expected="a path below the manifest",
            action="Do not use this manifest; make the dataset again.",
        )
    return base / relative


def to_path(uri_or_path: str) -> Path:
    """Path of a plain path or a `file://` URI.

    Raises:
        UsageError: Another scheme.
    """
    if "://" not in uri_or_path:
        return Path(uri_or_path)
    return resolve(uri_or_path, base=Path())
