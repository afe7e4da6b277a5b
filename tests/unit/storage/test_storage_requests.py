"""How many requests a file costs: benchmarks/scale.py and docs/explanation/scale.md count on it.

And how long it may take.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from s3_server import Server
from sssflow.storage.digest import reference
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import MIB, S3Address


def test_a_file_costs_three_requests_up_two_down_and_one_if_it_is_there(
    tmp_path: Path, server: Server, connect: Callable[..., S3Store]
) -> None:
    store = connect(server.url)
    sent: list[str] = []
    client = store._calls.client
    client.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.method))
    path, address = tmp_path / "file", S3Address("bucket", f"requests/{tmp_path.name}")
    path.write_bytes(b"x" * 1000)
    store.put_bytes(S3Address("bucket", "requests/other"), b"")  # the bucket is known from here on
    store.head(address)
    sent.clear()
    store.put_file(path, address)
    assert sent == ["HEAD", "PUT", "HEAD"]
    sent.clear()
    store.get_file(address, reference(path), tmp_path / "copy")
    assert sent == ["HEAD", "GET"]
    sent.clear()
    store.put_file(path, address)
    assert sent == ["HEAD"]


def test_a_large_object_may_take_as_long_as_a_slow_line_needs(
    tmp_path: Path,
    server: Server,
    connect: Callable[..., S3Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A download begins anew after its time: with one limit for all, it would never arrive."""
    store = connect(server.url, deadline_s=60.0, least_mib_per_s=0.5, part_mib=5)
    assert [store._calls.clock(mib * MIB).allowed_s for mib in (0, 30, 40)] == [60, 60, 80]
    assert store._calls.clock(1 << 50).allowed_s == 12 * 3600
    asked: list[int] = []
    clock = store._calls.clock
    monkeypatch.setattr(store._calls, "clock", lambda size=0: asked.append(size) or clock(size))
    path, address = tmp_path / "file", S3Address("bucket", f"slow/{tmp_path.name}")
    path.write_bytes(b"x" * (6 * MIB))
    store.put_file(path, address)
    assert 6 * MIB in asked
    asked.clear()
    store.get_file(address, reference(path), tmp_path / "copy")
    assert 6 * MIB in asked
    asked.clear()
    store.get_bytes(address, limit_bytes=7 * MIB)
    assert 6 * MIB in asked
