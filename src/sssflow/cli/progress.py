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
from dataclasses import dataclass

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
_MEASURED_S = 1.0
"""A pace over less than this says nothing."""


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
    def show(self, message: str, count: tuple[int, int] | None = None, *, task: str = "") -> None:
        """Show the newest message and, if known, how many of how many are done.

        `task`: which of several the count is of; empty where there is one.
        """

    @abstractmethod
    def say(self, message: str) -> None:
        """Show a message at once, so that it stays."""


@dataclass
class _Pace:
    """How fast one count has grown since it was first seen."""

    total: int
    first: tuple[float, int]
    last: tuple[float, int]

    def goes_on(self, count: tuple[int, int]) -> bool:
        """Whether `count` belongs to the same work; a smaller one is that of the next."""
        return count[1] == self.total and count[0] >= self.last[1]

    def left_s(self, now_s: float) -> float | None:
        """Time for the rest at the pace so far; None while nothing was measured."""
        (began_s, begun), (seen_s, done) = self.first, self.last
        if done == begun or done == self.total or seen_s - began_s < _MEASURED_S:
            return None
        each_s = (seen_s - began_s) / (done - begun)
        # One that takes longer than those before it has slowed the pace already.
        slowed_s = (now_s - began_s) / (done + 1 - begun)
        rest = self.total - done
        return max(each_s * rest - (now_s - seen_s), slowed_s * (rest - 1))


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
        self._message = "started"
        self._paces: dict[str, _Pace] = {}
        self._task: str | None = None

    def show(self, message: str, count: tuple[int, int] | None = None, *, task: str = "") -> None:
        """Keep the message, and write it if it is time."""
        self._message, self._task = message, None
        if count is not None:
            self._task = task
            now = (self._clock(), count[0])
            pace = self._paces.get(task)
            if pace is not None and pace.goes_on(count):
                pace.last = now if count[0] > pace.last[1] else pace.last
            else:
                self._paces[task] = _Pace(count[1], now, now)
        self.tick()

    def say(self, message: str) -> None:
        """Write at once; the minute starts again."""
        self._last_s = self._clock()
        self._message, self._task = message, None
        self._write(f"{self._name}: {_minutes(self._clock() - self._start_s)} | {message}")

    def tick(self) -> None:
        """Write the newest message, again if need be, unless a line is younger than `quiet_s`."""
        now_s = self._clock()
        if self._last_s is not None and now_s - self._last_s < self._quiet_s:
            return
        self._last_s = now_s
        line = f"{self._name}: {_minutes(now_s - self._start_s)} | {self._message}"
        left_s = None if self._task is None else self._paces[self._task].left_s(now_s)
        if left_s is not None and not line.endswith(" left"):  # a training says it itself
            line += f" | about {_minutes(left_s)} left" + (" of this task" if self._task else "")
        self._write(line)


class BarLine(Watch):
    """Moves a bar; what must stay is printed above it."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        super().__init__()
        self._bar, self._task = bar, task
        self._counted, self._done = "", 0

    def show(self, message: str, count: tuple[int, int] | None = None, *, task: str = "") -> None:
        """Move the bar."""
        if count is None:
            self._bar.update(self._task, note=message)
            return
        done, total = count
        if task != self._counted or done < self._done:
            # Another total makes the bar forget the pace, and the end, of what it counted before.
            self._bar.update(self._task, completed=0, total=total + 1)
        self._counted, self._done = task, done
        self._bar.update(self._task, completed=done, total=total, note=message)

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
