"""Processes that this one started and must end in order, itself told to stop or not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in the yielded list instead of dying by them.

    SIGHUP, the end of the terminal, stays ignored where `nohup` had it ignored.

    Outside the main thread signals cannot be taken over, and the list stays empty.
    """
    asked: list[int] = []
    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError):
            before[number] = signal.signal(number, lambda n, _: asked.append(n))
    try:
        yield asked
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


def signal_group(leader: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a process that leads a group, and its children; one that has ended is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, number)
