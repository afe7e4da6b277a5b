"""S3 objects against a real server, and through a network that misbehaves."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3_server import SECRET_KEY, Faults, Server, fault_proxy, free_port, raw_client
from sssflow.contracts.base import ObjectRef
from sssflow.errors import DataError, SssflowError, UnavailableError, UsageError
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Address, S3Config

Connect = Callable[..., S3Store]
MIB = 1 << 20


def at(key: str) -> S3Address:
    return S3Address("bucket", key)


def noise(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def ref_of(data: bytes) -> ObjectRef:
    return ObjectRef(uri="x", size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    "uri",
    [
        "file:///x",
        "s3:///key",
        "s3://bucket/a/../b",
        "bucket/key",
        "s3://b/k?x=1",
        "s3://[bucket]/key",
        "s3://[bucket/key",
        "s3://my bucket/key",
        "s3://key:secret@bucket/key",
    ],
)
def test_an_address_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="S3 address"):
        S3Address.parse(uri)


def test_an_address_is_bucket_and_key() -> None:
    address = S3Address.parse("s3://scans/a/b.json")
    assert (address.bucket, address.key, address.uri) == (
        "scans",
        "a/b.json",
        "s3://scans/a/b.json",
    )
    assert S3Address.parse("s3://scans").child("x").uri == "s3://scans/x"


def test_bytes_come_back_as_they_went(server: Server, connect: Connect) -> None:
    store = connect(server.url)
    for size in (0, 1, 70_000):
        data = noise(size, size)
        ref = store.put_bytes(at(f"small/{size}"), data)
        assert ref == ref_of(data).model_copy(update={"uri": f"s3://bucket/small/{size}"})
        assert store.get_bytes(at(f"small/{size}")) == data
    assert store.get_bytes(at("small/none")) is None
    store.delete(at("small/0"))
    store.delete(at("small/0"))
    assert store.head(at("small/0")) is None


def test_a_large_file_travels_in_parts(server: Server, connect: Connect, tmp_path: Path) -> None:
    store = connect(server.url, part_mib=5)
    data = noise(3, 11 * MIB + 17)
    source = tmp_path / "source"
    source.write_bytes(data)
    ref = store.put_file(source, at("large"))
    assert raw_client(server.url).head_object(Bucket="bucket", Key="large")["ETag"].endswith('-3"')
    store.get_file(at("large"), ref, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_an_equal_object_is_not_sent_again(
    server: Server, connect: Connect, tmp_path: Path
) -> None:
    store = connect(server.url)
    (tmp_path / "f").write_bytes(b"the same")
    store.put_file(tmp_path / "f", at("same"))
    written = raw_client(server.url).head_object(Bucket="bucket", Key="same")["LastModified"]
    time.sleep(1.1)
    store.put_file(tmp_path / "f", at("same"))
    again = raw_client(server.url).head_object(Bucket="bucket", Key="same")["LastModified"]
    assert again == written
    (tmp_path / "f").write_bytes(b"another")
    store.put_file(tmp_path / "f", at("same"))
    assert store.get_bytes(at("same")) == b"another"


@pytest.mark.slow
def test_a_bad_network_spoils_no_byte_and_leaves_no_part_of_a_file(
    server: Server, connect: Connect, tmp_path: Path
) -> None:
    faults = Faults(0.3)
    clean = connect(server.url)
    with fault_proxy(server, faults) as url:
        store = connect(url, attempts=12, read_timeout_s=10)
        (tmp_path / "in").mkdir()
        (tmp_path / "out").mkdir()

        def both_ways(i: int) -> None:
            data = noise(i, 200 + 977 * (i % 60))
            (tmp_path / "in" / str(i)).write_bytes(data)
            ref = store.put_file(tmp_path / "in" / str(i), at(f"storm/{i}"))
            store.get_file(at(f"storm/{i}"), ref, tmp_path / "out" / str(i))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(both_ways, range(150)))
    assert faults.counts["error"] > 20
    assert faults.counts["reset"] > 20
    assert faults.counts["cut"] > 20
    for i in range(150):
        sent = (tmp_path / "in" / str(i)).read_bytes()
        assert (tmp_path / "out" / str(i)).read_bytes() == sent
        assert clean.get_bytes(at(f"storm/{i}")) == sent
    assert files_in(tmp_path / "out") == sorted(map(str, range(150)))


def test_parts_survive_a_bad_network_too(server: Server, connect: Connect, tmp_path: Path) -> None:
    data = noise(5, 16 * MIB)
    (tmp_path / "f").write_bytes(data)
    faults = Faults(0.3)
    with fault_proxy(server, faults) as url:
        store = connect(url, attempts=15, part_mib=5)
        ref = store.put_file(tmp_path / "f", at("stormy-parts"))
        store.get_file(at("stormy-parts"), ref, tmp_path / "g")
    assert sum(faults.counts.values()) > faults.counts["none"] > 0
    assert (tmp_path / "g").read_bytes() == data


def test_a_flipped_bit_is_never_believed(server: Server, connect: Connect, tmp_path: Path) -> None:
    ref = connect(server.url).put_bytes(at("flip"), b"true content")
    with fault_proxy(server, Faults(1.0, ("flip",))) as url:
        store = connect(url, checksums="when_required", attempts=3)
        with pytest.raises(DataError, match="another content"):
            store.get_file(at("flip"), ref, tmp_path / "f")
    assert files_in(tmp_path) == []
    with fault_proxy(server, Faults(0.5, ("flip",))) as url:
        connect(url, checksums="when_required", attempts=20).get_file(
            at("flip"), ref, tmp_path / "f"
        )
    assert (tmp_path / "f").read_bytes() == b"true content"


def test_an_object_replaced_after_its_manifest_is_refused(
    server: Server, connect: Connect, tmp_path: Path
) -> None:
    store = connect(server.url)
    for i in range(20):
        ref = store.put_bytes(at("replaced"), f"first {i:02d}".encode())
        store.put_bytes(at("replaced"), f"other {i:02d}".encode())
        with pytest.raises(DataError, match="another content"):
            store.get_file(at("replaced"), ref, tmp_path / "f")
        store.put_bytes(at("replaced"), b"longer than before")
        with pytest.raises(DataError, match="another size"):
            store.get_file(at("replaced"), ref, tmp_path / "f")
    assert files_in(tmp_path) == []


def test_an_object_replaced_between_two_ranges_is_refused(
    server: Server, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = connect(server.url, part_mib=5, parallel=1)
    (tmp_path / "f").write_bytes(noise(1, 6 * MIB))
    ref = store.put_file(tmp_path / "f", at("moving"))
    other, ranges = connect(server.url), []
    read = store._read

    def meddle(*arguments: object) -> None:
        ranges.append(arguments[2])
        if len(ranges) == 2:
            other.put_bytes(at("moving"), noise(2, 6 * MIB))
        read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_read", meddle)
    with pytest.raises(DataError, match="replaced while it was read"):
        store.get_file(at("moving"), ref, tmp_path / "g")
    assert files_in(tmp_path) == ["f"]


_KILLED = """
import sys, time
from pathlib import Path
from sssflow.storage import s3_upload
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Address, S3Config
send, sent = s3_upload._send, []
def slow(*arguments):
    if len(sent) == 2:
        print("two parts are there", flush=True)
        time.sleep(60)
    sent.append(send(*arguments))
    return sent[-1]
s3_upload._send = slow
store = S3Store(S3Config(endpoint_url=sys.argv[1], region="us-east-1", part_mib=5, parallel=1))
store.put_file(Path(sys.argv[2]), S3Address("bucket", "killed"))
"""


def test_a_killed_upload_shows_nothing_and_goes_on_where_it_was(
    server: Server, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(noise(9, 16 * MIB))
    command = [sys.executable, "-c", _KILLED, server.url, str(tmp_path / "f")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"two parts are there\n"
        process.send_signal(signal.SIGKILL)
    store = connect(server.url, part_mib=5)
    assert store.head(at("killed")) is None
    uploads = raw_client(server.url).list_multipart_uploads(Bucket="bucket", Prefix="killed")
    assert len(uploads["Uploads"]) == 1

    sent: list[int] = []
    upload = store._calls.client.upload_part

    def count(**arguments: object) -> object:
        sent.append(int(str(arguments["PartNumber"])))
        return upload(**arguments)

    monkeypatch.setattr(store._calls.client, "upload_part", count)
    store.put_file(tmp_path / "f", at("killed"))
    assert sorted(sent) == [3, 4]
    assert store.get_bytes(at("killed")) == (tmp_path / "f").read_bytes()


def test_an_upload_that_ran_out_of_time_goes_on_where_it_was(
    server: Server, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the message says; else a file that takes longer than the deadline would never arrive."""
    (tmp_path / "f").write_bytes(noise(10, 16 * MIB))
    store = connect(server.url, part_mib=5, parallel=1)
    sent: list[int] = []
    upload = store._calls.client.upload_part
    monkeypatch.setattr("sssflow.storage.s3_calls.time.monotonic", lambda: 1000.0 * len(sent))

    def count(**arguments: object) -> object:
        sent.append(int(str(arguments["PartNumber"])))
        return upload(**arguments)

    monkeypatch.setattr(store._calls.client, "upload_part", count)
    for _ in range(4):
        late = _refusal(lambda: store.put_file(tmp_path / "f", at("late")))
        assert isinstance(late, UnavailableError)
    store.put_file(tmp_path / "f", at("late"))
    assert sent == [1, 2, 3, 4]
    assert store.get_bytes(at("late")) == (tmp_path / "f").read_bytes()


def test_uploads_that_nobody_takes_over_are_swept_from_every_page_of_the_list(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_client(server.url)
    for key in ("orphan/a", "orphan/b", "orphan/c", "orphanage/d"):
        raw.create_multipart_upload(Bucket="bucket", Key=key)
    store = connect(server.url)
    listing = store._calls.client.list_multipart_uploads
    monkeypatch.setattr(
        store._calls.client,
        "list_multipart_uploads",
        lambda **arguments: listing(**arguments, MaxUploads=2),
    )
    assert store.sweep_uploads(at("orphan"), older_than_s=3600) == 0
    assert store.sweep_uploads(at("orphan"), older_than_s=0) == 3
    left = raw.list_multipart_uploads(Bucket="bucket", Prefix="orphan")["Uploads"]
    assert [upload["Key"] for upload in left] == ["orphanage/d"]


def test_an_unfinished_upload_of_other_content_does_no_harm(
    server: Server, connect: Connect, tmp_path: Path
) -> None:
    raw = raw_client(server.url)
    raw.create_multipart_upload(
        Bucket="bucket", Key="stale", ChecksumAlgorithm="SHA256", Metadata={"sssflow-sha256": "0"}
    )
    (tmp_path / "f").write_bytes(noise(4, 6 * MIB))
    store = connect(server.url, part_mib=5)
    ref = store.put_file(tmp_path / "f", at("stale"))
    assert store.head(at("stale")).sha256 == ref.sha256  # type: ignore[union-attr]


@pytest.mark.parametrize("ending", ["finished", "given up"])
def test_two_writers_of_one_large_file_both_end_well(
    server: Server, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    key = f"shared {ending}"
    (tmp_path / "f").write_bytes(noise(11, 11 * MIB))
    first, second = connect(server.url, part_mib=5, parallel=1), connect(server.url, part_mib=5)
    upload, meddled = first._calls.client.upload_part, []

    def meddle(**arguments: object) -> object:
        if arguments["PartNumber"] == 2 and not meddled:
            meddled.append(True)
            if ending == "finished":
                second.put_file(tmp_path / "f", at(key))
            else:
                second.sweep_uploads(at(key), older_than_s=0)
        return upload(**arguments)

    monkeypatch.setattr(first._calls.client, "upload_part", meddle)
    ref = first.put_file(tmp_path / "f", at(key))
    assert first.get_file(at(key), ref, tmp_path / "g").read_bytes() == noise(11, 11 * MIB)
    assert "Uploads" not in raw_client(server.url).list_multipart_uploads(
        Bucket="bucket", Prefix=key
    )


def _refusal(call: Callable[[], object]) -> SssflowError:
    with pytest.raises(SssflowError) as caught:
        call()
    return caught.value


def test_wrong_keys_a_missing_bucket_and_no_keys_each_say_so(
    server: Server,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="sssflow")
    nowhere = S3Address("no-such-bucket", "x")
    for call in (lambda s: s.get_bytes(nowhere), lambda s: s.put_bytes(nowhere, b"")):
        missing = _refusal(lambda call=call: call(connect(server.url)))  # type: ignore[misc]
        assert (missing.exit_code, missing.what) == (64, "The bucket does not exist.")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-0815")
    wrong = _refusal(lambda: connect(server.url).put_bytes(at("x"), b"1"))
    assert wrong.exit_code == 64
    assert "credentials" in wrong.what
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")  # this server answers 404 to it
    for call in (lambda s: s.get_bytes(at("x")), lambda s: s.put_bytes(at("x"), b"1")):
        unknown = _refusal(lambda call=call: call(connect(server.url)))  # type: ignore[misc]
        assert unknown.exit_code == 64
        assert unknown.what.endswith("this object with these credentials.")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    none = _refusal(lambda: connect(server.url).put_bytes(at("x"), b"1"))
    assert none.exit_code == 64
    said = caplog.text + wrong.describe() + none.describe()
    assert "wrong-secret-0815" not in said
    assert SECRET_KEY not in said


def test_a_store_that_is_gone_is_given_up_after_the_attempts(connect: Connect) -> None:
    store = connect(f"http://127.0.0.1:{free_port()}", attempts=3)
    gone = _refusal(lambda: store.put_bytes(at("x"), b"1"))
    assert isinstance(gone, UnavailableError)


def test_a_deadline_ends_an_operation_between_attempts(server: Server, connect: Connect) -> None:
    with fault_proxy(server, Faults(1.0, ("error",))) as url:
        store = connect(url, attempts=20, deadline_s=1e-6)
        late = _refusal(lambda: store.put_bytes(at("x"), b"1"))
    assert isinstance(late, UnavailableError)
    assert "too slow" in late.what


def test_an_endpoint_that_is_not_amazons_is_reached_by_path(s3_keys: None) -> None:
    own = S3Store(S3Config(endpoint_url="http://store.local", region="us-east-1"))
    theirs = S3Store(S3Config(region="eu-west-1"))
    assert own._calls.client.meta.config.s3["addressing_style"] == "path"
    assert theirs._calls.client.meta.config.s3["addressing_style"] == "virtual"
