"""Progress: what moves the bar, and how seldom a log file is written to."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from rich.progress import Progress

from sssflow.cli.progress import BarLine, MinuteLines, parse_count, working


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
    clock.now_s += 30
    watch.emit(record(logging.INFO, "step 1 of 10"))
    assert lines == ["train: 0 min 00 s | started"]
    clock.now_s += 30
    watch.emit(record(logging.INFO, "step 2 of 10"))
    # A step takes 30 s, and eight are left; how long it took to load does not count.
    assert lines[1:] == ["train: 1 min 00 s | step 2 of 10 | about 4 min 00 s left"]
    clock.now_s += 60
    watch.tick()
    # The third step takes 60 s at least: two in 90 s, seven are left.
    assert lines[2:] == ["train: 2 min 00 s | step 2 of 10 | about 5 min 15 s left"]


def test_nothing_is_said_of_the_time_left_before_it_was_measured() -> None:
    clock, lines = Clock(), list[str]()
    watch = MinuteLines("train", lines.append, clock=clock)
    clock.now_s += 60
    watch.show("step 601 of 1000", (601, 1000))  # a resumed run: this one has made one step
    assert lines == ["train: 1 min 00 s | step 601 of 1000"]
    clock.now_s += 60
    watch.show("step 631 of 1000", (631, 1000))
    assert lines[1:] == ["train: 2 min 00 s | step 631 of 1000 | about 12 min 18 s left"]


def test_the_time_left_of_a_task_is_not_measured_by_those_before_or_beside_it() -> None:
    clock, lines = Clock(), list[str]()
    watch = MinuteLines("pipeline", lines.append, clock=clock)
    clock.now_s += 600  # of earlier tasks
    watch.show("infer (1/2): case 1 of 10", (1, 10), task="infer (1/2)")
    assert lines == ["pipeline: 10 min 00 s | infer (1/2): case 1 of 10"]
    clock.now_s += 30
    watch.show("infer (2/2): case 1 of 10", (1, 10), task="infer (2/2)")
    clock.now_s += 30
    watch.show("infer (1/2): case 2 of 10", (2, 10), task="infer (1/2)")
    expected = "case 2 of 10 | about 8 min 00 s left of this task"
    assert lines[1:] == [f"pipeline: 11 min 00 s | infer (1/2): {expected}"]
    clock.now_s += 60
    watch.show("infer (2/2): case 1 of 10", (1, 10), task="infer (2/2)")
    assert lines[2:] == ["pipeline: 12 min 00 s | infer (2/2): case 1 of 10"]
    clock.now_s += 60  # the next model of the same task begins at its first case
    watch.show("infer (1/2): case 1 of 10", (1, 10), task="infer (1/2)")
    assert lines[3:] == ["pipeline: 13 min 00 s | infer (1/2): case 1 of 10"]


def test_a_training_that_says_what_is_left_is_not_contradicted() -> None:
    clock, lines = Clock(), list[str]()
    watch = MinuteLines("pipeline", lines.append, clock=clock)
    for step in (1, 2):
        clock.now_s += 60
        watch.show(f"step {step} of 10, 240 s left", (step, 10), task="train")
    assert lines[1:] == ["pipeline: 2 min 00 s | step 2 of 10, 240 s left"]


def test_a_bar_that_was_full_begins_anew_with_the_next_task_of_the_same_length() -> None:
    bar = Progress(console=Console(file=io.StringIO()))
    watch = BarLine(bar, bar.add_task("pipeline", total=None, note=""))
    for step in (1, 2):
        watch.show(f"step {step} of 2", (step, 2), task="warm-up")
    (shown,) = bar.tasks
    assert shown.finished
    watch.show("step 1 of 2", (1, 2), task="baseline")
    assert not shown.finished  # else its clock stands still, and 0:00:00 are left
    assert shown.time_remaining is None
    assert (shown.completed, shown.total) == (1, 2)


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
