"""How many requests a file costs: benchmarks/scale.py and docs/explanation/scale.md count on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from s3_server import Server
from sssflow.storage.digest import reference
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Address


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
