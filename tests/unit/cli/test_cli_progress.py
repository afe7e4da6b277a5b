"""Progress: what moves the bar, and how seldom a log file is written to."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from sssflow.cli.progress import MinuteLines, parse_count, working


@pytest.mark.parametrize(
    ("message", "count"),
    [
        ("step 20 of 300, loss 0.5", (20, 300)),
        ("case 3 of 3", (3, 3)),
        ("0 of 5", (0, 5)),
        ("prompts 1/4: case", (1, 4)),
        ("5 of 3", None),
        ("0 of 0", None),
        ("loss 0.5", None),
    ],
)
def test_n_of_m_is_read(message: str, count: tuple[int, int] | None) -> None:
    assert parse_count(message) == count


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("sssflow.x", level, "", 0, message, None, None)


def test_one_line_per_minute_with_the_newest_message_and_the_time_left() -> None:
    clock, lines = Clock(), list[str]()
    watch = MinuteLines("train", lines.append, clock=clock)
    watch.show("started")
    clock.now_s += 59
    watch.emit(record(logging.INFO, "step 1 of 10"))
    assert lines == ["train: 0 min 00 s | started"]
    clock.now_s += 1
    watch.emit(record(logging.INFO, "step 2 of 10"))
    assert lines[1:] == ["train: 1 min 00 s | step 2 of 10 | about 4 min 00 s left"]
    clock.now_s += 60
    watch.tick()
    assert lines[2:] == ["train: 2 min 00 s | step 2 of 10 | about 8 min 00 s left"]


def test_a_warning_is_told_at_once() -> None:
    clock, lines = Clock(), list[str]()
    watch = MinuteLines("pack", lines.append, clock=clock)
    watch.show("a")
    watch.emit(record(logging.WARNING, "two scans are equal"))
    assert lines[1:] == ["pack: 0 min 00 s | warning: two scans are equal"]


@pytest.mark.parametrize(
    ("is_terminal", "kind"), [(True, "xterm"), (True, "dumb"), (False, "xterm")]
)
def test_log_messages_are_shown_while_the_block_runs_and_not_after(
    is_terminal: bool, kind: str
) -> None:
    target = io.StringIO()
    console = Console(
        file=target,
        force_terminal=is_terminal,
        width=120,
        color_system=None,
        _environ={"TERM": kind},
    )
    logger = logging.getLogger("sssflow.somewhere")
    before = logging.getLogger("sssflow").handlers[:]
    with working("train", terminal=console) as watch:
        logger.info("step 1 of 2")
        logger.warning("look here")
        watch.show("step 2 of 2", (2, 2))
    assert logging.getLogger("sssflow").handlers == before
    logger.warning("after the end")
    text = target.getvalue()
    assert "look here" in text
    assert "step" in text
    assert "after the end" not in text
