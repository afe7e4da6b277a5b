"""A store whose certificate a private CA has signed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("cryptography")

from private_tls import private_server
from sssflow.errors import UsageError
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Address

ADDRESS = S3Address("bucket", "key")


class Answers(BaseHTTPRequestHandler):
    """Says of every object that it is one of four bytes, and notes the session token."""

    tokens: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.tokens.append(self.headers.get("x-amz-security-token", ""))
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.send_header("ETag", '"e"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a store, and the certificate that it is to be checked against."""
    with private_server(tmp_path_factory.mktemp("private"), Answers) as found:
        yield found


def test_the_bundle_that_the_environment_names_opens_it_and_a_token_travels_along(
    private: tuple[str, Path], connect: Callable[..., S3Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = private
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary-4711")
    found = connect(url).head(ADDRESS)
    assert found is not None
    assert (found.size_bytes, Answers.tokens[-1]) == (4, "temporary-4711")


@pytest.mark.parametrize("bundle", ["", "nowhere.pem", "key.pem"])
def test_a_certificate_that_is_not_trusted_is_told_at_once(
    bundle: str,
    private: tuple[str, Path],
    connect: Callable[..., S3Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, certificate = private
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    if bundle:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate.with_name(bundle)))
    waits: list[float] = []
    store = S3Store(connect(url).config, sleep=waits.append)
    with pytest.raises(UsageError, match="not trusted") as caught:
        store.head(ADDRESS)
    assert "AWS_CA_BUNDLE" in (caught.value.action or "")
    assert waits == []
