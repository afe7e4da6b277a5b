"""A store whose certificate a private CA has signed."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sssflow.errors import UsageError
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Address

HERE = "127.0.0.1"
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
    folder = tmp_path_factory.mktemp("private")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hospital")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HERE))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, format_ = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "ca.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, format_, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    server = ThreadingHTTPServer((HERE, 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://{HERE}:{server.server_port}", folder / "ca.pem"
    server.shutdown()
    server.server_close()


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
