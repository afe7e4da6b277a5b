"""S3 objects: verified on the way in and out, with deadlines and bounded retries.

A download appears under its name complete and with the expected SHA-256, or not at all; ranged
reads carry `If-Match`, so that an object replaced in between is refused. An upload is checked by
the store part by part (SHA-256) and by a look at the result. Credentials, region and endpoint come
from boto3's usual chain unless the settings name them. An ETag is never taken for a digest.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sssflow.contracts.base import ObjectRef
from sssflow.errors import DataError, UnavailableError
from sssflow.storage.atomic import write_atomically
from sssflow.storage.digest import sha256_bytes, sha256_file
from sssflow.storage.s3_calls import DIGEST_KEY, MIB, Clock, S3Address, S3Calls, S3Config
from sssflow.storage.s3_errors import CutBodyError, is_absent, status_of
from sssflow.storage.s3_upload import UploadGoneError, put_in_parts, sweep_uploads

_CHUNK_BYTES = 1 << 18
_SMALL_BYTES = 64 * MIB


@dataclass(frozen=True)
class Head:
    """What the store says of an object; `sha256` is what its writer claimed, empty if nothing."""

    size_bytes: int
    etag: str
    sha256: str


class _FlippedError(Exception):
    """The bytes that came are not those that the manifest names."""


class S3Store:
    """Objects of one S3 store; safe to share between threads.

    Args:
        config: How it is reached.
        sleep: Waits some seconds between attempts.
    """

    def __init__(
        self, config: S3Config | None = None, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.config = config or S3Config()
        self._calls = S3Calls(self.config, sleep)
        self._buckets: set[str] = set()

    def head(self, address: S3Address) -> Head | None:
        """Size, ETag and claimed digest; None if the object does not exist.

        Raises:
            UsageError: The bucket does not exist, or the credentials do not open it.
            UnavailableError: The store failed or was too slow.
        """

        def ask() -> Head | None:
            try:
                found = self._calls.client.head_object(Bucket=address.bucket, Key=address.key)
            except Exception as error:
                if is_absent(error):
                    return None
                if status_of(error) in (400, 403):
                    self._list(address)  # which says why, for example that a token has expired
                raise
            claimed = found.get("Metadata", {}).get(DIGEST_KEY, "")
            return Head(found["ContentLength"], found["ETag"], claimed)

        head = self._calls.tried(ask, address, "look at")
        if head is None and address.bucket not in self._buckets:
            # Whether the object or its bucket is missing.
            self._calls.tried(lambda: self._list(address), address, "look at")
            self._buckets.add(address.bucket)
        return head

    def get_bytes(self, address: S3Address, *, limit_bytes: int = _SMALL_BYTES) -> bytes | None:
        """A small object; None if it does not exist.

        Raises:
            DataError: It is larger than `limit_bytes`, or was replaced while it was read.
        """
        found = self.head(address)
        if found is None:
            return None
        if found.size_bytes > limit_bytes:
            raise DataError(
                "An object is larger than it may be.",
                where=address.uri,
                expected=f"at most {limit_bytes} bytes",
                found=f"{found.size_bytes} bytes",
            )
        parts: list[bytes] = []
        span = (0, found.size_bytes)
        clock = self._calls.clock(found.size_bytes)
        self._read(address, found.etag, span, parts.append, clock)
        return b"".join(parts)

    def get_file(self, address: S3Address, ref: ObjectRef, target: Path) -> Path:
        """Write the object to `target` if it holds what `ref` says.

        Raises:
            DataError: It is missing, was replaced, or has another size or digest.
            UnavailableError: The store failed or was too slow, or the disk is full.
        """
        found = self.head(address)
        if found is None or found.size_bytes != ref.size_bytes:
            raise DataError(
                "An object named by a manifest is missing or has another size.",
                where=address.uri,
                expected=f"{ref.size_bytes} bytes",
                found="nothing" if found is None else f"{found.size_bytes} bytes",
                action="Run the stage that wrote it again.",
            )
        etag, clock = found.etag, self._calls.clock(ref.size_bytes)
        # A bit may have flipped on the way: worth another try, never worth believing.
        for _ in range(self.config.attempts):
            try:
                write_atomically(target, lambda file: self._fill(file, address, etag, ref, clock))
            except _FlippedError as error:
                last = error
            else:
                return target
        raise DataError(
            "An object has another content than its manifest says.",
            where=address.uri,
            expected=f"SHA-256 {ref.sha256}",
            found=last,
            action="Run the stage that wrote it again.",
        )

    def put_bytes(self, address: S3Address, data: bytes) -> ObjectRef:
        """Write a small object, checked by the store."""
        ref = ObjectRef(uri=address.uri, size_bytes=len(data), sha256=sha256_bytes(data))
        self._put_whole(address, data, ref)
        return ref

    def put_file(self, path: Path, address: S3Address) -> ObjectRef:
        """Write a file; an object with the same digest and size is left as it is.

        Large files go in parts; parts that a killed call has left are used again.
        """
        ref = ObjectRef(uri=address.uri, size_bytes=path.stat().st_size, sha256=sha256_file(path))
        if self._is_stored(address, ref):
            return ref
        if ref.size_bytes <= self.config.part_mib * MIB:
            self._put_whole(address, path.read_bytes(), ref)
        else:
            self._put_parts(path, address, ref)
        return ref

    def delete(self, address: S3Address) -> None:
        """Delete one object; one that does not exist is no error."""
        self._calls.tried(
            lambda: self._calls.client.delete_object(Bucket=address.bucket, Key=address.key),
            address,
            "delete",
        )

    def sweep_uploads(self, folder: S3Address, *, older_than_s: float = 86_400.0) -> int:
        """Abort unfinished uploads below `folder` that killed processes left; returns how many.

        A younger one may belong to a living writer: the largest object gets 12 hours.

        Raises:
            UsageError: The bucket does not exist, or the credentials do not open it.
            UnavailableError: The store failed or was too slow.
        """
        return sweep_uploads(self._calls, folder, older_than_s=older_than_s)

    def _list(self, address: S3Address) -> object:
        """A call like HEAD, which has no body: the answer of this one tells the cause."""
        return self._calls.client.list_objects_v2(
            Bucket=address.bucket, Prefix=address.key, MaxKeys=1
        )

    def _fill(
        self, file: BinaryIO, address: S3Address, etag: str, ref: ObjectRef, clock: Clock
    ) -> None:
        """All ranges of an object into an open file, then the check of its digest."""
        part_bytes = self.config.part_mib * MIB
        descriptor = file.fileno()
        os.truncate(descriptor, ref.size_bytes)

        def fetch(start: int) -> None:
            place = start

            def sink(chunk: bytes) -> None:
                nonlocal place
                place += os.pwrite(descriptor, chunk, place)

            span = (start, min(start + part_bytes, ref.size_bytes))
            self._read(address, etag, span, sink, clock)

        parts = range(0, ref.size_bytes, part_bytes)
        if len(parts) == 1:
            fetch(0)
        else:
            with ThreadPoolExecutor(self.config.parallel) as pool:
                list(pool.map(fetch, parts))
        found = sha256_file(Path(file.name))
        if found != ref.sha256:
            raise _FlippedError(f"SHA-256 {found}")

    def _read(
        self,
        address: S3Address,
        etag: str,
        span: tuple[int, int],
        sink: Callable[[bytes], object],
        clock: Clock,
    ) -> None:
        """Bytes [start, stop) into `sink`; each attempt goes on where the last one was cut."""
        reached, stop = span

        def rest() -> None:
            nonlocal reached
            if reached == stop:
                return
            answer = self._calls.client.get_object(
                Bucket=address.bucket,
                Key=address.key,
                Range=f"bytes={reached}-{stop - 1}",
                IfMatch=etag,
            )
            if not str(answer.get("ContentRange", "")).startswith(f"bytes {reached}-{stop - 1}/"):
                raise CutBodyError("the answer is for another range")
            for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                clock.check(address)
                sink(chunk)
                reached += len(chunk)
            if reached != stop:
                raise CutBodyError("the body ended early")

        self._calls.tried(rest, address, "read", clock)

    def _put_whole(self, address: S3Address, data: bytes, ref: ObjectRef) -> None:
        self._calls.tried(
            lambda: self._calls.client.put_object(
                Bucket=address.bucket,
                Key=address.key,
                Body=data,
                Metadata={DIGEST_KEY: ref.sha256},
                **self._calls.checksum(bytes.fromhex(ref.sha256)),
            ),
            address,
            "write",
        )
        self._require_stored(address, ref)

    def _put_parts(self, path: Path, address: S3Address, ref: ObjectRef) -> None:
        """Send a large file; at first as a part of an upload that may be another process's."""
        for take_over in (True, False):
            # A living writer's upload may be taken over too: whoever is second finds it gone.
            with contextlib.suppress(UploadGoneError):
                put_in_parts(self._calls, path, address, ref, take_over=take_over)
            if self._is_stored(address, ref):
                return
        self._require_stored(address, ref)

    def _is_stored(self, address: S3Address, ref: ObjectRef) -> bool:
        found = self.head(address)
        return found is not None and (found.size_bytes, found.sha256) == (
            ref.size_bytes,
            ref.sha256,
        )

    def _require_stored(self, address: S3Address, ref: ObjectRef) -> None:
        if not self._is_stored(address, ref):
            raise UnavailableError(
                "The object store does not hold what was just written.",
                where=address.uri,
                expected=f"{ref.size_bytes} bytes, SHA-256 {ref.sha256}",
                action="Another process may write there; run the same command again.",
            )
