"""Publish a file or a folder all or nothing, even under SIGKILL.

Form: write beside the target, fsync, rename over it, fsync the folder. A temporary folder on
another mount would not do: rename is not atomic across mounts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sssflow.errors import UnavailableError

_TMP_SUFFIX = ".sssflow-tmp"
_DISK_ERRNOS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    # A network disk that went away, and names that no file system takes.
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENODEV,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that appears at `path` complete or not at all.

    Missing parent folders are made. After a kill the old file (or none) is there; a leftover
    temporary file is removed by `sweep_leftovers`.

    Raises:
        UnavailableError: The disk is full, read-only or refuses access (exit 69).
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two threads may write the same file, for example an entry of a cache.
        writer = f"{os.getpid()}-{threading.get_native_id()}"
        tmp = path.with_name(f".{path.name}.{writer}{_TMP_SUFFIX}")
        try:
            with tmp.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)
        fsync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Atomic `Path.write_bytes`."""
    write_atomically(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Atomic `Path.write_text` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def link_or_copy(source: Path, target: Path) -> None:
    """Give `target` the content of `source`: by a hard link where the disk allows it, else a copy.

    Missing parent folders are made; a file that is there is replaced all or nothing.

    Raises:
        UnavailableError: The disk is full, read-only or refuses access (exit 69).
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}.link")
        beside.unlink(missing_ok=True)
        try:
            beside.hardlink_to(source)
        except OSError:
            with source.open("rb") as file:
                write_atomically(target, lambda copy: shutil.copyfileobj(file, copy))
        else:
            beside.replace(target)
            # Between two names of one file a rename does nothing and leaves both.
            beside.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_leftovers(folder: Path, *, older_than_s: float = 3600.0) -> list[Path]:
    """Remove temporary files that a killed process left in `folder` (recursively).

    Only files with our suffix whose age exceeds `older_than_s` go: a younger one may belong to a
    living writer. Returns what was removed; a missing folder gives an empty list.
    """
    removed = []
    for path in sorted(folder.rglob(f".*{_TMP_SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()
                removed.append(path)
    return removed


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating-system refusal into `UnavailableError`.

    Args:
        path: What is written; where the system names a file elsewhere, that one is told.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRNOS:
            raise
        named = Path(error.filename) if isinstance(error.filename, str) else path
        if not named.absolute().is_relative_to(path.absolute().parent):
            raise UnavailableError(
                "A file cannot be read or written.",
                where=named,
                found=error.strerror,
                action="Give this user the right to it, or free space there; then run the same "
                "command again.",
            ) from error
        raise UnavailableError(
            "The file cannot be written.",
            where=path,
            found=error.strerror,
            action="Free space or choose another output folder, then run the same command again.",
        ) from error
