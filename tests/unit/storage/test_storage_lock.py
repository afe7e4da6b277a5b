"""One process at a time, as long as it lives and no longer."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sssflow.errors import UnavailableError
from sssflow.storage.lock import locked

_HOLDER = """
import sys, time
from pathlib import Path
from sssflow.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("inside", flush=True)
    time.sleep(60)
"""


def test_who_comes_second_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".lock"
    busy = UnavailableError("Another process is inside.")
    command = [sys.executable, "-c", _HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"inside\n"
        with pytest.raises(UnavailableError, match="inside"), locked(path, refusal=busy):
            pytest.fail("two processes are inside")
        told: list[str] = []

        def end_the_first() -> None:
            told.append("waiting")
            holder.send_signal(signal.SIGKILL)

        with locked(path, waiting=end_the_first):
            assert told == ["waiting"]


def test_nobody_is_told_to_wait_where_nobody_is_inside(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / ".lock", waiting=lambda: pytest.fail("nobody is inside")):
            pass


def test_a_disk_that_takes_no_file_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, mode: str = "r") -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnavailableError, match="cannot be written"), locked(tmp_path / ".lock"):
        pytest.fail("there is no lock")
