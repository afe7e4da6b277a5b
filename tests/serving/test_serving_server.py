"""The local server: ready means ready, a broken repository is said so, a stop leaves nothing."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository
from sssflow.errors import DataError, UnavailableError, UsageError
from sssflow.serving import local_triton
from sssflow.serving.client import TritonClient
from sssflow.serving.config import ClientConfig
from sssflow.serving.environment import TritonEnvironment
from sssflow.serving.local_triton import (
    ADMIN_HEADER,
    ServerOptions,
    ServerState,
    down,
    ready_models,
    status,
)
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference

Start = Callable[..., ServerState]


def test_a_started_server_is_ready_and_a_stopped_one_is_gone(
    own_server: Start, tmp_path: Path
) -> None:
    server = own_server()
    assert status(tmp_path / "state") == server
    assert ready_models(server) == {"segmenter_net": True, "segmenter": True}
    with pytest.raises(UsageError, match="running already"):
        own_server()
    assert down(tmp_path / "state", exit_timeout_s=5)
    assert status(tmp_path / "state") is None
    assert not Path(f"/proc/{server.pid}").exists()
    assert not down(tmp_path / "state")
    assert "segmenter" in (tmp_path / "state" / "server.log").read_text("utf-8")


def describe_again(live: Path) -> None:
    """Give `repository.json` the digests of the files as they are now."""
    described = load_contract(ModelRepository, live / REPOSITORY_FILE)
    models = tuple(
        model.model_copy(
            update={
                "files": tuple(reference(live / ref.uri, base=live) for ref in model.files),
            }
        )
        for model in described.models
    )
    save_contract(described.model_copy(update={"models": models}), live / REPOSITORY_FILE)


def test_that_others_can_read_the_admin_key_is_told_and_the_key_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise UnavailableError("far enough")

    monkeypatch.setattr(local_triton, "verified_models", lambda _: ("m",))
    monkeypatch.setattr(local_triton, "_start", stop)
    installed = TritonEnvironment(tmp_path, tmp_path, tmp_path, ())
    for options in (ServerOptions(), ServerOptions(admin_key="hush")):
        assert "hush" not in repr(options)
        assert "(ps)" not in caplog.text
        with pytest.raises(UnavailableError, match="far enough"):
            local_triton.up(installed, tmp_path, tmp_path / "state", options=options)
    assert "other users of this machine can read it (ps)" in caplog.text
    assert "hush" not in caplog.text


@pytest.mark.parametrize("kind", ["graph", "config"])
def test_a_model_that_does_not_load_ends_the_start_with_its_name(
    own_server: Start, tmp_path: Path, kind: str
) -> None:
    model = tmp_path / "live" / "segmenter_net"
    broken = model / "1" / "model.onnx" if kind == "graph" else model / "config.pbtxt"
    broken.write_bytes(b"nonsense {")
    describe_again(tmp_path / "live")
    with pytest.raises(DataError, match="did not start") as caught:
        own_server()
    assert "segmenter_net" in caught.value.found
    assert status(tmp_path / "state") is None


def test_a_missing_or_changed_file_is_refused_before_the_server_starts(
    own_server: Start, tmp_path: Path
) -> None:
    file = tmp_path / "live" / "segmenter_net" / "1" / "model.py"
    file.write_text(file.read_text("utf-8") + "#", "utf-8")
    with pytest.raises(DataError, match="another size"):
        own_server()
    file.unlink()
    with pytest.raises(DataError, match="missing"):
        own_server()
    assert not (tmp_path / "state").exists()


def test_a_folder_without_a_repository_is_refused(triton_environment, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        local_triton.up(triton_environment, tmp_path, tmp_path / "state")


def test_a_port_that_is_taken_is_refused(own_server: Start, server: ServerState) -> None:
    with pytest.raises(UnavailableError, match="cannot listen"):
        own_server(ports=(server.http_port, 0, 0))


def test_a_later_process_of_the_same_number_is_not_taken_for_the_server(
    server: ServerState, tmp_path: Path
) -> None:
    other = server.model_copy(update={"pid": os.getpid()})
    (tmp_path / "server.json").write_text(other.to_json())
    assert status(tmp_path) is None
    assert not down(tmp_path)


def test_admin_interfaces_are_closed_without_the_key(own_server: Start) -> None:
    server = own_server(admin_key="secret")
    for path in (
        "/v2/repository/index",
        "/v2/repository/models/segmenter/unload",
        "/v2/repository/models/segmenter/load",
        "/v2/systemsharedmemory/status",
        "/v2/models/segmenter/config",
        "/v2/logging",
        "/v2/trace/setting",
    ):
        data = b"{}" if "repository" in path else None
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(  # noqa: S310 - a loopback address
                f"{server.http_url}{path}", data=data, timeout=10
            )
        assert caught.value.code == 403, path
    for url in (server.grpc_url, server.http_url):
        with (
            TritonClient(ClientConfig(url=url)) as stranger,
            pytest.raises(UsageError, match="restricts this interface"),
        ):
            stranger.unload("segmenter")
        keys = {"admin_header": ADMIN_HEADER, "admin_key": "secret"}
        with TritonClient(ClientConfig(url=url, **keys)) as admin:
            admin.load("segmenter")
    assert all(ready_models(server).values())
