"""A connection to the S3 server for the tests of storage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from s3_server import REGION
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Config


@pytest.fixture
def connect(s3_keys: None) -> Callable[..., S3Store]:
    """A store at a URL, without waits."""

    def make(url: str, **settings: object) -> S3Store:
        config = S3Config.model_validate({"endpoint_url": url, "region": REGION, **settings})
        return S3Store(config, sleep=lambda _: None)

    return make
