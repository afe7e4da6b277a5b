"""What is said where the system refuses a path that the command line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sssflow.cli import session
from sssflow.cli.main import run
from sssflow.contracts.model_repository import ModelRepository, ServedModel
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import reference


@pytest.mark.parametrize("place", ["file", "file/below", "n" * 300, "loop"])
@pytest.mark.parametrize(
    "command",
    [
        ("serve", "sync", "repository", "PLACE"),
        ("serve", "publish", "repository", "PLACE", "grpc://127.0.0.1:9"),
        ("serve", "down", "--state", "PLACE"),
        ("serve", "check", "grpc://127.0.0.1:9", "PLACE"),
        ("pipeline", "compile", "PLACE/made.yaml"),
    ],
)
def test_a_path_that_the_system_refuses_is_no_fault_of_ours(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("repository/net").mkdir(parents=True)
    (Path("repository/net") / "config.pbtxt").write_text("name: 'net'")
    files = (reference(Path("repository/net/config.pbtxt"), base=Path("repository")),)
    net = ServedModel(name="net", version=1, digest="0" * 64, inputs=(), outputs=(), files=files)
    save_contract(ModelRepository(profile="cpu", models=(net,)), Path("repository/repository.json"))
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    code = run([part.replace("PLACE", place) for part in command])
    assert code in (0, 64, 65, 69), capsys.readouterr().err


def test_a_refused_path_that_nobody_named_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()

    def fail(*_: object, **__: object) -> None:
        Path("here/inside").read_text()

    monkeypatch.setattr(session, "load_config", fail)
    for named in ("here", "elsewhere", ".", "here/insid"):
        expected = 69 if named == "here/insid" else 70
        assert run(["train", named, "--print-config"]) == expected
    monkeypatch.setattr(session, "load_config", lambda *_, **__: tmp_path.read_text())
    assert run(["train", "elsewhere", "--print-config"]) == 70
