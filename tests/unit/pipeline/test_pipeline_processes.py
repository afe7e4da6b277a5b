"""Ending processes in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from sssflow.pipeline.processes import signal_group, stop_requests


@pytest.fixture
def hangup_is_heard() -> Iterator[None]:
    """Also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_is_heard")
def test_a_signal_is_collected_and_the_former_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_end_of_the_terminal_stays_ignored_where_nohup_had_it_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_there_is_nothing_to_collect() -> None:
    found: list[list[int]] = []

    def look() -> None:
        with stop_requests() as asked:
            found.append(asked)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [[]]


def test_a_signal_reaches_the_whole_group_and_one_that_has_ended_is_no_error() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    leader = subprocess.Popen(
        [sys.executable, "-c", child], start_new_session=True, stdin=subprocess.PIPE
    )
    signal_group(leader, signal.SIGKILL)
    assert leader.wait(30) == -signal.SIGKILL
    signal_group(leader, signal.SIGKILL)
