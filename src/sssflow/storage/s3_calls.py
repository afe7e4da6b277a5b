"""Single calls to an S3 store: settings, addresses, deadlines and bounded retries."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from secrets import SystemRandom
from typing import Any, Literal, TypeVar
from urllib.parse import urlparse

import boto3
from botocore import exceptions as boto
from botocore.config import Config as BotoConfig
from pydantic import Field

from sssflow.configuration import Config
from sssflow.errors import SssflowError, UnavailableError, UsageError
from sssflow.storage.s3_errors import explained, may_pass, unusable

T = TypeVar("T")

DIGEST_KEY = "sssflow-sha256"
"""Name of the object's metadata entry that holds the SHA-256 its writer claims."""

MIB = 1 << 20
_LONGEST_WAIT_S = 5.0
_LONGEST_OBJECT_S = 12 * 3600.0
"""Half of the age from which an unfinished upload counts as left behind."""
_ADDRESS = re.compile(r"s3://(?P<bucket>[\w.:-]+)(/(?P<key>[^?#\x00-\x1f]*))?", re.ASCII)


class S3Config(Config):
    """How an S3 store is reached."""

    endpoint_url: str | None = Field(None, description="None: from boto3's chain.")
    region: str | None = Field(None, description="None: from boto3's chain, else us-east-1.")
    addressing: Literal["auto", "path", "virtual"] = Field(
        "auto", description="auto: path style for every endpoint that is not Amazon's."
    )
    checksums: Literal["when_supported", "when_required"] = Field(
        "when_supported",
        description="when_required: for stores that do not know the checksum headers; our own "
        "SHA-256 then still checks every byte that is read.",
    )
    attempts: int = Field(5, ge=1, le=20, description="Tries of each request.")
    connect_timeout_s: float = Field(5.0, gt=0, le=120, description="To open a connection.")
    read_timeout_s: float = Field(30.0, gt=0, le=600, description="Longest silence of the store.")
    deadline_s: float = Field(
        900.0,
        gt=0,
        description="Longest time for one object; see least_mib_per_s.",
    )
    least_mib_per_s: float = Field(
        0.1,
        gt=0,
        description="A large object may take as long as it does at this rate, 12 hours at most: a "
        "download that the time limit ends begins anew the next time.",
    )
    part_mib: int = Field(16, ge=5, le=1024, description="Size of a part of a large object.")
    parallel: int = Field(4, ge=1, le=64, description="Parts on the way at the same time.")


@dataclass(frozen=True)
class S3Address:
    """Bucket and key of an object, or of everything that begins with the key."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> S3Address:
        """From `s3://bucket/key`.

        Raises:
            UsageError: Another scheme, no name of a bucket, or a key that climbs.
        """
        found = _ADDRESS.fullmatch(uri)
        key = (found["key"] or "").lstrip("/") if found else ""
        if found is None or ".." in key.split("/"):
            raise UsageError(
                "Not an S3 address.",
                where=uri,
                expected="s3://bucket/key; the bucket of letters, digits, - and .; no ? and #",
            )
        return cls(found["bucket"], key)

    def child(self, name: str) -> S3Address:
        """The address of `name` below this one."""
        return S3Address(self.bucket, f"{self.key.rstrip('/')}/{name}".lstrip("/"))

    @property
    def uri(self) -> str:
        """`s3://bucket/key`."""
        return f"s3://{self.bucket}/{self.key}"


@dataclass
class Clock:
    """A time from now on, after which no further attempt is made."""

    allowed_s: float

    def __post_init__(self) -> None:
        self._ends_s = time.monotonic() + self.allowed_s

    def check(self, address: S3Address) -> None:
        """Refuse to go on after the deadline.

        Raises:
            UnavailableError: It has passed.
        """
        if time.monotonic() > self._ends_s:
            raise UnavailableError(
                "The object store was too slow.",
                where=address.uri,
                expected=f"an end within {self.allowed_s:.0f} s",
                action="Run the same command again; what is finished is kept.",
            )


class S3Calls:
    """A boto3 client whose every call has a deadline and a bounded number of attempts.

    Args:
        config: How the store is reached.
        sleep: Waits some seconds between attempts.

    Raises:
        UsageError: The settings, or those of boto3's chain, name no store.
    """

    def __init__(self, config: S3Config, sleep: Callable[[float], None]) -> None:
        self.config = config
        try:
            self.client = _client(config)
        except (boto.BotoCoreError, ValueError) as error:
            raise unusable(error, config.endpoint_url or "boto3's settings") from None
        self._sleep = sleep
        self._random = SystemRandom()

    def clock(self, size_bytes: int = 0) -> Clock:
        """The deadline of an operation that begins now and moves that many bytes."""
        needed_s = size_bytes / (self.config.least_mib_per_s * MIB)
        return Clock(max(self.config.deadline_s, min(needed_s, _LONGEST_OBJECT_S)))

    def tried(
        self,
        call: Callable[[], T],
        address: S3Address,
        verb: str,
        clock: Clock | None = None,
    ) -> T:
        """`call`, again after a passing failure, with full-jitter waits.

        Raises:
            SssflowError: The failure is for good, or attempts or time are used up.
        """
        clock = clock or self.clock()
        for attempt in range(1, self.config.attempts + 1):
            clock.check(address)
            try:
                return call()
            except SssflowError:
                raise
            except Exception as error:
                if attempt == self.config.attempts or not may_pass(error):
                    raise explained(error, address.uri, verb) from error
            self._sleep(self._random.uniform(0, min(_LONGEST_WAIT_S, 0.1 * 2**attempt)))
        raise AssertionError("attempts is at least 1")

    def checksum(self, digest: bytes) -> dict[str, str]:
        """Arguments that let the store check what it receives."""
        if self.config.checksums == "when_required":
            return {}
        return {"ChecksumSHA256": base64.b64encode(digest).decode()}


def _client(config: S3Config) -> Any:
    """A boto3 client; botocore itself never retries, so that attempts are counted once."""

    def made(style: str) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=config.region,
            config=BotoConfig(
                signature_version="s3v4",
                retries={"total_max_attempts": 1},
                connect_timeout=config.connect_timeout_s,
                read_timeout=config.read_timeout_s,
                max_pool_connections=8 * config.parallel + 2,
                request_checksum_calculation=config.checksums,
                response_checksum_validation=config.checksums,
                s3={"addressing_style": style},
            ),
        )

    if config.addressing != "auto":
        return made(config.addressing)
    client = made("virtual")
    host = urlparse(client.meta.endpoint_url).hostname or ""
    amazon = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return client if amazon else made("path")
