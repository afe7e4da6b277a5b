"""A lock between processes: held by an open file, freed by the system however its holder ends."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sssflow.errors import SssflowError
from sssflow.storage.atomic import disk_errors


@contextmanager
def locked(
    path: Path,
    *,
    refusal: SssflowError | None = None,
    waiting: Callable[[], object] = lambda: None,
) -> Iterator[int]:
    """Be the only one inside among the processes that name the same file, which is made and stays.

    Args:
        path: The file; missing parent folders are made.
        refusal: Raised where another process is inside; None: it is waited for, without end.
        waiting: Called once before that wait.

    Yields:
        The open file: a process that inherits it holds the lock too, to its own end.

    Raises:
        UnavailableError: The disk is full, read-only or refuses access (exit 69).
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if refusal is not None:
                raise refusal from None
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
