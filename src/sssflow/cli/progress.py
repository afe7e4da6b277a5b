"""Progress of a stage: a bar on a terminal, one line per minute elsewhere.

Stages below the command line only log, or call back. A message that says "<n> of <m>" or
"<n>/<m>" moves the bar.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from abc import abstractmethod
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

_COUNT = re.compile(r"\b(\d+)(?: of |/)(\d+)\b")
_QUIET_S = 60.0


def parse_count(message: str) -> tuple[int, int] | None:
    """`(n, m)` of the first "<n> of <m>" in a message; None if there is none or n exceeds m."""
    found = _COUNT.search(message)
    if found is None:
        return None
    done, total = int(found[1]), int(found[2])
    return (done, total) if 0 < total and done <= total else None


class Watch(logging.Handler):
    """Takes what a stage says, by log or by call, and shows it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Take one log message."""
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.say(f"warning: {message}")
        else:
            self.show(message, parse_count(message))

    @abstractmethod
    def show(self, message: str, count: tuple[int, int] | None = None) -> None:
        """Show the newest message and, if known, how many of how many are done."""

    @abstractmethod
    def say(self, message: str) -> None:
        """Show a message at once, so that it stays."""


class MinuteLines(Watch):
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
        super().__init__()
        self._name, self._write, self._quiet_s, self._clock = name, write, quiet_s, clock
        self._start_s = clock()
        self._last_s: float | None = None
        self._message, self._count = "started", None  # type: tuple[str, tuple[int, int] | None]

    def show(self, message: str, count: tuple[int, int] | None = None) -> None:
        """Keep the message, and write it if it is time."""
        self._message, self._count = message, count
        self.tick()

    def say(self, message: str) -> None:
        """Write at once; the minute starts again."""
        self._last_s = self._clock()
        self._message, self._count = message, None
        self._write(f"{self._name}: {_minutes(self._clock() - self._start_s)} | {message}")

    def tick(self) -> None:
        """Write the newest message, again if need be, unless a line is younger than `quiet_s`."""
        now_s = self._clock()
        if self._last_s is not None and now_s - self._last_s < self._quiet_s:
            return
        self._last_s = now_s
        elapsed_s = now_s - self._start_s
        line = f"{self._name}: {_minutes(elapsed_s)} | {self._message}"
        if self._count is not None and 0 < self._count[0] < self._count[1] and elapsed_s >= 1:
            done, total = self._count
            line += f" | about {_minutes(elapsed_s * (total - done) / done)} left"
        self._write(line)


class BarLine(Watch):
    """Moves a bar; what must stay is printed above it."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        super().__init__()
        self._bar, self._task = bar, task

    def show(self, message: str, count: tuple[int, int] | None = None) -> None:
        """Move the bar."""
        if count is None:
            self._bar.update(self._task, note=message)
        else:
            self._bar.update(self._task, completed=count[0], total=count[1], note=message)

    def say(self, message: str) -> None:
        """Print above the bar."""
        self._bar.console.print(message, markup=False)


@contextlib.contextmanager
def working(name: str, *, terminal: Console | None = None) -> Iterator[Watch]:
    """Show what the stage in the block logs; what it calls back goes to `Watch.show`."""
    terminal = terminal or error_console()
    logger = logging.getLogger("sssflow")
    level, propagate = logger.level, logger.propagate
    # A dumb terminal cannot redraw a line, so a bar would never be seen there.
    can_redraw = terminal.is_terminal and not terminal.is_dumb_terminal
    with _bar(name, terminal) if can_redraw else _lines(name, terminal) as watch:
        logger.addHandler(watch)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield watch
        finally:
            logger.removeHandler(watch)
            logger.setLevel(level)
            logger.propagate = propagate


@contextlib.contextmanager
def _bar(name: str, terminal: Console) -> Iterator[Watch]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=terminal, transient=True) as bar:
        yield BarLine(bar, bar.add_task(name, total=None, note=""))


@contextlib.contextmanager
def _lines(name: str, terminal: Console) -> Iterator[Watch]:
    watch = MinuteLines(name, lambda line: terminal.print(line, markup=False))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_QUIET_S / 4):
            watch.acquire()
            try:
                watch.tick()
            finally:
                watch.release()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
