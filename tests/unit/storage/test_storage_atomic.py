"""A published file is there complete or not at all, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from sssflow.errors import UnavailableError
from sssflow.storage import atomic
from sssflow.storage.atomic import (
    disk_errors,
    link_or_copy,
    sweep_leftovers,
    write_atomically,
    write_bytes,
    write_text,
)

# Rewrites one file for ever; content i is the byte i, a million times, so a mix is seen.
WRITER = """
import sys, itertools
from pathlib import Path
from sssflow.storage.atomic import write_atomically
def slowly(value):
    def write(file):
        for _ in range(64):
            file.write(bytes([value]) * 16384)
            file.flush()
    return write
print("ready", flush=True)
for i in itertools.count(int(sys.argv[2])):
    write_atomically(Path(sys.argv[1]), slowly(i % 256))
"""


def test_a_new_file_appears_with_its_folders_and_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "Größe")
    assert path.read_bytes() == "Größe".encode()
    assert [p.name for p in path.parent.iterdir()] == ["c.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_twenty_kills_at_random_moments_never_leave_a_mixed_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    old = bytes([0]) * 64 * 16384
    write_bytes(path, old)
    rng = random.Random(7)
    seen: set[int] = set()
    leftovers = 0
    for kill in range(20):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(1 + 12 * kill)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.03))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        content = path.read_bytes()
        assert len(content) == len(old)
        assert content == content[:1] * len(old)
        seen.add(content[0])
        leftovers += len(list(tmp_path.glob(".a.bin.*")))
        sweep_leftovers(tmp_path, older_than_s=0.0)
        assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert len(seen) > 1, "no kill came after a finished write"
    assert leftovers > 0, "no kill came in the middle of a write"


def test_only_old_leftovers_of_ours_are_swept(tmp_path: Path) -> None:
    old = tmp_path / "deep" / ".a.bin.1.sssflow-tmp"
    young = tmp_path / ".b.bin.2.sssflow-tmp"
    foreign = tmp_path / ".c.tmp"
    old.parent.mkdir()
    for path in (old, young, foreign):
        path.write_bytes(b"x")
    past = time.time() - 7200
    os.utime(old, (past, past))
    os.utime(foreign, (past, past))
    assert sweep_leftovers(tmp_path) == [old]
    assert young.exists()
    assert foreign.exists()
    assert sweep_leftovers(tmp_path / "missing") == []


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ESTALE, errno.ENOTDIR]
)
def test_a_disk_that_refuses_is_exit_69_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    with pytest.raises(UnavailableError) as caught:
        write_bytes(path, b"new")
    assert caught.value.exit_code == 69
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_another_error_of_the_system_is_not_called_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="File exists") as caught:
        write_bytes(tmp_path / "file" / "below", b"x")
    assert not isinstance(caught.value, UnavailableError)


def test_a_file_that_is_linked_twice_is_one_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_text("new")
    target.parent.mkdir()
    target.write_text("old")
    for _ in range(2):
        link_or_copy(source, target)
        assert target.samefile(source)
        assert list(target.parent.iterdir()) == [target]


def test_a_file_elsewhere_that_may_not_be_read_is_told_by_its_own_name(tmp_path: Path) -> None:
    """A whole task stands in the block: most of what it opens is not its result."""
    scan = tmp_path / "scans" / "p1.nii"
    with (
        pytest.raises(UnavailableError, match="cannot be read or written") as caught,
        disk_errors(tmp_path / "work" / "store"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(scan))
    assert caught.value.where == str(scan)
