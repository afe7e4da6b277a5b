"""Progress of a stage, read from its log: a bar on a terminal, one line per minute elsewhere.

Stages below the command line only log. A message that says "<n> of <m>" moves the bar.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sssflow.cli.session import error_console

_COUNT = re.compile(r"\b(\d+) of (\d+)\b")
_QUIET_S = 60.0


def parse_count(message: str) -> tuple[int, int] | None:
    """`(n, m)` of the first "<n> of <m>" in a message; None if there is none or n exceeds m."""
    found = _COUNT.search(message)
    if found is None:
        return None
    done, total = int(found[1]), int(found[2])
    return (done, total) if 0 < total and done <= total else None


@contextlib.contextmanager
def working(name: str, *, terminal: Console | None = None) -> Iterator[None]:
    """Show what the stage logs while the block runs."""
    terminal = terminal or error_console()
    watch = _bar(name, terminal) if terminal.is_terminal else _lines(name, terminal)
    logger = logging.getLogger("sssflow")
    level, propagate = logger.level, logger.propagate
    with watch as handler:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class MinuteLines(logging.Handler):
    """Warnings at once; of the other messages the newest one, at most one per `quiet_s`.

    Args:
        name: Put in front of every line.
        write: Receives each line.
        quiet_s: Least time between two lines.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[str], None],
        *,
        quiet_s: float = _QUIET_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(logging.INFO)
        self._name, self._write, self._quiet_s, self._clock = name, write, quiet_s, clock
        self._start_s = self._last_s = clock()
        self._latest = "started"
        self._first = True

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message of a stage."""
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            self._write(f"{self._name}: warning: {message}")
            return
        self._latest = message
        if self._first:
            self._first = False
            self._say()
        else:
            self.tick()

    def tick(self) -> None:
        """Say the newest message again if nothing was said for `quiet_s`."""
        if self._clock() - self._last_s >= self._quiet_s:
            self._say()

    def _say(self) -> None:
        now_s = self._clock()
        self._last_s = now_s
        elapsed_s = now_s - self._start_s
        line = f"{self._name}: {_minutes(elapsed_s)} | {self._latest}"
        count = parse_count(self._latest)
        if count is not None and 0 < count[0] < count[1] and elapsed_s >= 1:
            line += f" | about {_minutes(elapsed_s * (count[1] - count[0]) / count[0])} left"
        self._write(line)


class _BarHandler(logging.Handler):
    """Moves a bar; warnings stay above it."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        super().__init__(logging.INFO)
        self._bar, self._task = bar, task

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            self._bar.console.print(f"warning: {message}", markup=False)
            return
        count = parse_count(message)
        if count is None:
            self._bar.update(self._task, note=message)
        else:
            self._bar.update(self._task, completed=count[0], total=count[1], note=message)


@contextlib.contextmanager
def _bar(name: str, terminal: Console) -> Iterator[logging.Handler]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=terminal, transient=True) as bar:
        yield _BarHandler(bar, bar.add_task(name, total=None, note=""))


@contextlib.contextmanager
def _lines(name: str, terminal: Console) -> Iterator[logging.Handler]:
    handler = MinuteLines(name, lambda line: terminal.print(line, markup=False))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_QUIET_S / 4):
            with handler.lock or contextlib.nullcontext():
                handler.tick()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield handler
    finally:
        stop.set()
        thread.join()


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
