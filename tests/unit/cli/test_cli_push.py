"""`sssflow data push` and `sweep`: a folder in S3, and what a killed upload left there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3_server import Server, raw_client
from sssflow.cli.main import run
from sssflow.storage.places import open_place, read_tree


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "p1").mkdir(parents=True)
    (folder / "p1" / "image.nii").write_bytes(b"voxels")
    (folder / "list.txt").write_bytes(b"p1")
    (folder / ".hidden").write_bytes(b"not for others")
    return folder


def test_a_folder_is_published_with_the_digest_of_every_file(
    scans: Path, server: Server, s3_keys: None, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    uri = f"s3://bucket/{scans.parent.name}"
    assert run(["data", "push", str(scans), uri]) == 0
    tree = read_tree(open_place(uri))
    assert tree is not None
    assert [ref.uri for ref in tree.files] == ["list.txt", "p1/image.nii"]
    told = capsys.readouterr().out
    assert f"2 files, 0.0 MB, digest {tree.digest}" in told
    assert f"next: sssflow pipeline submit --data {uri}" in told
    assert run(["data", "push", str(scans), uri]) == 0
    assert tree.digest in capsys.readouterr().out


def test_a_dry_run_copies_nothing(
    scans: Path, server: Server, s3_keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    uri = f"s3://bucket/{scans.parent.name}"
    assert run(["data", "push", str(scans), uri, "--dry-run"]) == 0
    assert read_tree(open_place(uri)) is None


def test_what_cannot_be_pushed_is_refused(scans: Path, tmp_path: Path, capsys) -> None:
    assert run(["data", "push", str(scans), "/elsewhere"]) == 64
    (tmp_path / "empty").mkdir()
    assert run(["data", "push", str(tmp_path / "empty"), "s3://bucket/x"]) == 65
    assert run(["data", "push", str(tmp_path / "none"), "s3://bucket/x"]) == 65
    assert "unmounted disk" in capsys.readouterr().err


def test_names_that_are_no_utf_8_are_refused_before_anything_is_sent(scans: Path, capsys) -> None:
    (Path(os.fsdecode(os.fsencode(scans) + b"/caf\xe9.nii"))).write_bytes(b"x")
    assert run(["data", "push", str(scans), "s3://bucket/x"]) == 65
    assert "caf\\udce9.nii" in capsys.readouterr().err


def test_a_folder_with_links_is_refused_before_anything_is_sent(scans: Path, capsys) -> None:
    """Left out without a word, they would make a smaller dataset with a digest of its own."""
    (scans / "p2").symlink_to(scans / "p1")
    assert run(["data", "push", str(scans), "s3://bucket/x"]) == 65
    told = capsys.readouterr().err
    assert "1 link(s), for example p2" in told
    assert "cp -rL" in told


def test_unfinished_uploads_are_swept_when_they_are_old_enough(
    server: Server, s3_keys: None, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    raw = raw_client(server.url)
    raw.create_multipart_upload(Bucket="bucket", Key="swept/half")
    assert run(["data", "sweep", "s3://bucket/swept"]) == 0
    assert "0 unfinished uploads" in capsys.readouterr().out
    assert run(["data", "sweep", "s3://bucket/swept/", "--older-than-h", "0"]) == 0
    assert "1 unfinished upload was" in capsys.readouterr().out
    assert "Uploads" not in raw.list_multipart_uploads(Bucket="bucket", Prefix="swept/")
    assert run(["data", "sweep", "/folder"]) == 64
