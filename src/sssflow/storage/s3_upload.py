"""Multipart uploads: parts checked by SHA-256, taken up again after a kill, else swept."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sssflow.contracts.base import ObjectRef
from sssflow.errors import UnavailableError
from sssflow.storage.s3_calls import DIGEST_KEY, MIB, Clock, S3Address, S3Calls
from sssflow.storage.s3_errors import code_of, is_absent

_MOST_PARTS = 10_000
_GONE = "NoSuchUpload"


class UploadGoneError(Exception):
    """The upload is no longer under way: somebody else finished or aborted it."""


@dataclass(frozen=True)
class _Unfinished:
    key: str
    upload_id: str
    begun: datetime


def put_in_parts(
    calls: S3Calls, path: Path, address: S3Address, ref: ObjectRef, *, take_over: bool = True
) -> None:
    """Upload a large file; nothing is visible before its last request.

    A failure for good aborts the upload. A kill, a deadline or an outage leaves its parts in the
    store: the next call for the same key takes over those whose digest fits, and `sweep_uploads`
    removes what nobody takes over.
    An upload begun for other content carries that content's claimed digest, which cannot be read
    before its end: the caller must look at the result, and call again without `take_over`.

    Raises:
        UploadGoneError: Another process finished or aborted the upload that this call worked on.
    """
    clock = calls.clock(ref.size_bytes)
    part_bytes = max(calls.config.part_mib * MIB, -(-ref.size_bytes // _MOST_PARTS))
    left = [u for u in _unfinished(calls, address) if u.key == address.key] if take_over else []
    begun = max(left, key=lambda u: u.begun).upload_id if left else None
    upload_id = begun or _begin(calls, address, ref, clock)

    def send(number: int) -> dict[str, Any]:
        with path.open("rb") as file:
            file.seek((number - 1) * part_bytes)
            data = file.read(part_bytes)
        return _send(calls, address, upload_id, number, data, known.get(number), clock)

    try:
        known = _parts(calls, address, upload_id) if begun else {}
        with ThreadPoolExecutor(calls.config.parallel) as pool:
            sent = list(pool.map(send, range(1, -(-ref.size_bytes // part_bytes) + 1)))
        calls.tried(
            lambda: calls.client.complete_multipart_upload(
                Bucket=address.bucket,
                Key=address.key,
                UploadId=upload_id,
                MultipartUpload={"Parts": sent},
            ),
            address,
            "finish",
            clock,
        )
    except Exception as error:
        if code_of(error.__cause__ or error) == _GONE:
            raise UploadGoneError from None
        if not isinstance(error, UnavailableError):
            _abort(calls, address, upload_id)
        raise


def sweep_uploads(calls: S3Calls, folder: S3Address, *, older_than_s: float) -> int:
    """Abort unfinished uploads below `folder` of at least that age; returns how many."""
    now, swept = datetime.now(tz=UTC), 0
    # All are listed before the first one goes: the pages of the list are told by their last entry.
    for upload in list(_unfinished(calls, folder.child(""))):
        if now - upload.begun >= timedelta(seconds=older_than_s):
            _abort(calls, S3Address(folder.bucket, upload.key), upload.upload_id)
            swept += 1
    return swept


def _begin(calls: S3Calls, address: S3Address, ref: ObjectRef, clock: Clock) -> str:
    kind = {} if calls.config.checksums == "when_required" else {"ChecksumAlgorithm": "SHA256"}
    begun = calls.tried(
        lambda: calls.client.create_multipart_upload(
            Bucket=address.bucket,
            Key=address.key,
            Metadata={DIGEST_KEY: ref.sha256},
            **kind,
        ),
        address,
        "begin to write",
        clock,
    )
    return str(begun["UploadId"])


def _send(
    calls: S3Calls,
    address: S3Address,
    upload_id: str,
    number: int,
    data: bytes,
    known: Any,
    clock: Clock,
) -> dict[str, Any]:
    """Send one part, unless the store holds it already; returns its entry of the final list."""
    digest = hashlib.sha256(data).digest()
    if known is not None and _same_part(known, data, digest):
        found = known
    else:
        found = calls.tried(
            lambda: calls.client.upload_part(
                Bucket=address.bucket,
                Key=address.key,
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                **calls.checksum(digest),
            ),
            address,
            "write a part of",
            clock,
        )
    return {"PartNumber": number, "ETag": found["ETag"], **calls.checksum(digest)}


def _same_part(known: Any, data: bytes, digest: bytes) -> bool:
    """Whether a stored part has this content, by the SHA-256 that the store has checked."""
    checked = known.get("ChecksumSHA256")
    return bool(known["Size"] == len(data) and checked == base64.b64encode(digest).decode())


def _parts(calls: S3Calls, address: S3Address, upload_id: str) -> dict[int, Any]:
    """Parts that the store holds of an upload, by number (at most 1000, the store's page)."""
    page = calls.tried(
        lambda: calls.client.list_parts(Bucket=address.bucket, Key=address.key, UploadId=upload_id),
        address,
        "list the parts of",
    )
    return {found["PartNumber"]: found for found in page.get("Parts", ())}


def _unfinished(calls: S3Calls, prefix: S3Address) -> Iterator[_Unfinished]:
    """Unfinished uploads of keys that begin with the prefix, page by page.

    Pages are asked for by key alone, because versitygw refuses its own upload marker: of one key
    with more uploads than a page holds (1000), the next call sees the rest.
    """
    after: dict[str, str] = {}
    while True:
        page = calls.tried(
            lambda: calls.client.list_multipart_uploads(
                Bucket=prefix.bucket,
                Prefix=prefix.key,
                **after,  # noqa: B023 - called before it changes
            ),
            prefix,
            "list the uploads of",
        )
        for found in page.get("Uploads", ()):
            yield _Unfinished(found["Key"], found["UploadId"], found["Initiated"])
        if not page.get("IsTruncated"):
            return
        after = {"KeyMarker": page["NextKeyMarker"]}


def _abort(calls: S3Calls, address: S3Address, upload_id: str) -> None:
    def abort() -> None:
        try:
            calls.client.abort_multipart_upload(
                Bucket=address.bucket, Key=address.key, UploadId=upload_id
            )
        except Exception as error:
            if not is_absent(error):
                raise

    calls.tried(abort, address, "abort the upload of")
