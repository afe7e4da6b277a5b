"""An S3 server for the tests of storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import ACCESS_KEY, REGION, SECRET_KEY, Server, s3_server

from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Config


@pytest.fixture(scope="session")
def server(versitygw: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(versitygw, tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the environment, and nothing of the machine's own set-up."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


@pytest.fixture
def connect(credentials: None) -> Callable[..., S3Store]:
    """A store at a URL, with short waits."""

    def make(url: str, **settings: object) -> S3Store:
        config = S3Config.model_validate({"endpoint_url": url, "region": REGION, **settings})
        return S3Store(config, sleep=lambda _: None)

    return make
