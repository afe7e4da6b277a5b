"""What a user may have mistaken about a store: its settings, and how long keys last."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sssflow.errors import SssflowError
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Address

ADDRESS = S3Address("bucket", "x")


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("AWS_ENDPOINT_URL", "store:9000", "store:9000"),
        ("AWS_ENDPOINT_URL", "http://[::1", "IPv6"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:port", "127.0.0.1:port"),
        ("AWS_PROFILE", "nobody", "(nobody) could not be found"),
        ("AWS_DEFAULT_REGION", "my region", "my region"),
        ("AWS_CONFIG_FILE", "broken", "broken"),
    ],
)
def test_settings_that_name_no_store_are_a_slip_of_the_user(
    name: str,
    text: str,
    hint: str,
    s3_keys: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").write_text("no section\n")
    monkeypatch.setenv(name, text)
    with pytest.raises(SssflowError) as caught:
        S3Store(sleep=lambda _: None).head(ADDRESS)
    refused = caught.value
    assert (refused.exit_code, hint in refused.found) == (64, True), refused.describe()


class Expired(BaseHTTPRequestHandler):
    """Answers as Amazon's store does to keys that have expired: to HEAD without saying so."""

    def do_HEAD(self) -> None:
        self.send_response(400)
        self.end_headers()

    def do_GET(self) -> None:
        said = b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>"
        self.send_response(400)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_keys_that_have_expired_are_told_by_the_first_look_at_an_object(
    connect: Callable[..., S3Store],
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Expired)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.raises(SssflowError) as caught:
            connect(f"http://127.0.0.1:{server.server_port}").head(ADDRESS)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert (caught.value.exit_code, caught.value.what) == (69, "The credentials have expired.")
