"""From URI to path, without leaving the folder that a contract owns."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

from sssflow.errors import DataError, UsageError


def below(name: str, *, base: Path) -> Path:
    """Path of a file that a manifest names by a relative path, which is all it may be here.

    For whatever is written, and for names that came with somebody else's data.

    Raises:
        DataError: The name is an address or an absolute path, or it leaves `base`.
    """
    relative = PurePosixPath(name)
    climbs = relative.is_absolute() or ".." in relative.parts or "\x00" in name
    if climbs or "://" in name:
        raise DataError(
            "A manifest names a file outside its own folder.",
            where=name,
            expected="a path below the manifest",
            action="Do not use this manifest; make the dataset again.",
        )
    return base / relative


def resolve(uri: str, *, base: Path) -> Path:
    """Local path of `uri`; a relative one is taken from `base` and may not climb out of it.

    Raises:
        DataError: A relative URI leaves `base`.
        UsageError: A scheme other than `file`, or a path on another machine.
    """
    if "://" not in uri:
        return below(uri, base=base)
    try:
        parsed = urlparse(uri)
    except ValueError:  # a name of a host in brackets that is none
        parsed = urlparse("")
    # What stands between // and / is the name of a machine: file://scans/x would be /x.
    if parsed.scheme != "file" or parsed.netloc not in ("", "localhost") or not parsed.path:
        raise UsageError(
            "This address cannot be read here.",
            where=uri,
            expected="file:///FOLDER (three slashes) or a relative path",
        )
    return Path(unquote(parsed.path))


def to_path(uri_or_path: str) -> Path:
    """Path of a plain path or a `file://` URI.

    Raises:
        UsageError: Another scheme, or a path on another machine.
    """
    if "://" not in uri_or_path:
        return Path(uri_or_path)
    return resolve(uri_or_path, base=Path())
