"""A folder of verified files named by their SHA-256, bounded in size.

The bytes of an entry were checked when it was made, and are checked again when they are taken
out, because a shared disk may rot and a neighbour may write. Entries come in by rename and go out
oldest use first; a file that was handed out is a link of its own and outlives its entry.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from sssflow.contracts.base import ObjectRef
from sssflow.storage.atomic import (
    disk_errors,
    link_or_copy,
    sweep_leftovers,
)
from sssflow.storage.digest import sha256_file
from sssflow.storage.lock import locked


class FileCache:
    """Content-addressed files below `root`, shared by threads and processes.

    Args:
        root: Folder of the cache.
        bound_bytes: Largest total size; one file larger than that is not kept. What several
            processes add at the same time may pass it by an eighth each.
    """

    def __init__(self, root: Path, *, bound_bytes: int) -> None:
        self._root = root
        self._bound_bytes = bound_bytes
        # What may still come in before the folder is looked through again: to do so for each of
        # a hundred thousand files would take longer than to fetch them.
        self._room_bytes = 0

    def fetch(self, ref: ObjectRef, target: Path, load: Callable[[Path], object]) -> None:
        """Put the content that `ref` names at `target`; all or nothing.

        Args:
            ref: Size and digest of the content.
            target: Where it is wanted.
            load: Writes the verified content to a path; called if the cache does not hold it.
        """
        entry = self._root / ref.sha256[:2] / ref.sha256
        with disk_errors(target):
            if not self._is_whole(entry, ref):
                if ref.size_bytes > self._bound_bytes:
                    load(target)
                    return
                load(entry)
                self._room_bytes -= ref.size_bytes
            try:
                os.utime(entry)
                link_or_copy(entry, target)
            except FileNotFoundError:  # a neighbour's eviction came in between
                load(target)
            if self._room_bytes <= 0:
                self._evict()

    @property
    def size_bytes(self) -> int:
        """Total size of the entries."""
        return sum(path.stat().st_size for path in self._entries())

    def _is_whole(self, entry: Path, ref: ObjectRef) -> bool:
        """Whether the entry holds what its name says; a damaged one is removed."""
        try:
            if entry.stat().st_size == ref.size_bytes and sha256_file(entry) == ref.sha256:
                return True
        except FileNotFoundError:
            return False
        entry.unlink(missing_ok=True)
        return False

    def _entries(self) -> list[Path]:
        return [p for p in self._root.glob("??/*") if p.is_file() and not p.name.startswith(".")]

    def _evict(self) -> None:
        with locked(self._root / ".lock"):
            sweep_leftovers(self._root)
            aged: list[tuple[float, int, Path]] = []
            for path in self._entries():
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    aged.append((facts.st_mtime, facts.st_size, path))
            total_bytes = sum(size for _, size, _ in aged)
            share_bytes = self._bound_bytes // 8
            goal_bytes = self._bound_bytes
            if total_bytes > goal_bytes:
                goal_bytes -= share_bytes
            for _, size, path in sorted(aged):
                if total_bytes <= goal_bytes:
                    break
                path.unlink(missing_ok=True)
                total_bytes -= size
            self._room_bytes = min(share_bytes, self._bound_bytes - total_bytes)
