"""A store in S3: results published whole, unfinished work taken up by the next process."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3_server import Server, raw_client
from sssflow.contracts.dataset import DatasetManifest
from sssflow.errors import DataError, InterruptedRun
from sssflow.pipeline.mirror import PARTIAL_FILE, Mirror
from sssflow.pipeline.store import Store, bring_scans, source_fingerprint
from sssflow.pipeline.task import component_task
from sssflow.storage.contracts import save_contract
from sssflow.storage.places import TREE_FILE, FilePlace, open_place, push_tree

PROGRAM = "a" * 64
CACHE = f"sssflow-cache-{os.getuid()}"


@pytest.fixture
def uri(
    server: Server, s3_keys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Address of a fresh store; temporary folders lie below the test's own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield f"s3://bucket/stores/{tmp_path.name}"
    left = [p.name for p in (tmp_path / "tmp").iterdir()]
    assert left in ([], [CACHE]), "a temporary folder was left behind"


def keys(server: Server, uri: str) -> list[str]:
    prefix = uri.removeprefix("s3://bucket/") + "/"
    found = raw_client(server.url).list_objects_v2(Bucket="bucket", Prefix=prefix)
    return sorted(entry["Key"].removeprefix(prefix) for entry in found.get("Contents", ()))


def published(uri: str, manifest: DatasetManifest) -> str:
    """Pointer to a result of the ingest task that holds the manifest alone."""
    with component_task("ingest", "", uri) as task:
        out = task.folder({"config": "1"})
        assert not task.has(DatasetManifest, out / "manifest.json")
        save_contract(manifest, out / "manifest.json")
        return task.publish(DatasetManifest, out / "manifest.json")


def test_a_result_of_one_task_is_found_and_verified_by_the_next(
    uri: str, manifest: DatasetManifest, server: Server
) -> None:
    inputs = {"config": "1"}
    with component_task("ingest", "", uri) as task:
        out = task.folder(inputs)
        assert not task.has(DatasetManifest, out / "manifest.json")
        out.joinpath("images").mkdir(parents=True)
        out.joinpath("images", "a").write_bytes(b"pixels")
        save_contract(manifest, out / "manifest.json")
        pointer = task.publish(DatasetManifest, out / "manifest.json")
    assert f"{uri}/ingest/" in pointer
    assert [k.split("/", 2)[2] for k in keys(server, uri)] == [
        TREE_FILE,
        "images/a",
        "manifest.json",
    ]

    with component_task("train", "", uri) as task:
        found, path = task.read(DatasetManifest, pointer)
        assert found == manifest
        assert (path.parent / "images" / "a").read_bytes() == b"pixels"
    with component_task("ingest", "", uri) as task:
        out = task.folder(inputs)
        assert task.has(DatasetManifest, out / "manifest.json")
        assert task.publish(DatasetManifest, out / "manifest.json") == pointer


def test_a_task_that_names_the_files_it_needs_is_brought_no_others(
    uri: str, manifest: DatasetManifest
) -> None:
    with component_task("ingest", "", uri) as task:
        out = task.folder({"config": "1"})
        out.joinpath("images").mkdir(parents=True)
        for name in "abc":
            out.joinpath("images", name).write_bytes(name.encode())
        save_contract(manifest, out / "manifest.json")
        pointer = task.publish(DatasetManifest, out / "manifest.json")

    with component_task("generate_prompts", "unlabelled 1/2", uri) as task:
        found, path = task.read(DatasetManifest, pointer, lambda _: {"images/b"})
        assert found == manifest
        assert [file.name for file in (path.parent / "images").iterdir()] == ["b"]
        # Asked for again, without a choice, the rest comes too.
        _, path = task.read(DatasetManifest, pointer)
        assert sorted(file.name for file in (path.parent / "images").iterdir()) == ["a", "b", "c"]


def test_what_was_brought_is_kept_where_no_other_user_can_read_it(
    uri: str, manifest: DatasetManifest, tmp_path: Path
) -> None:
    """Scans are among it, and the folder for temporary files is everybody's."""
    pointer = published(uri, manifest)

    def kept() -> int:
        with component_task("train", "", uri) as task:
            assert task.read(DatasetManifest, pointer)[0] == manifest
        return sum(path.is_file() for path in cache.glob("??/*"))

    cache = tmp_path / "tmp" / CACHE
    assert kept() == 1
    assert cache.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(cache)
    cache.mkdir()
    cache.chmod(0o755)
    assert kept() == 0


def test_what_an_interrupted_task_had_done_is_there_for_its_next_try(
    uri: str, manifest: DatasetManifest, server: Server
) -> None:
    def work() -> None:
        with component_task("train", "", uri) as task:
            out = task.folder({"config": "1"})
            assert not task.has(DatasetManifest, out / "manifest.json")
            if not (out / "checkpoint").exists():
                out.mkdir(parents=True, exist_ok=True)
                (out / "checkpoint").write_text("step 7")
                (out / ".lock").write_text("")
                raise InterruptedRun("stopped in the middle")
            assert (out / "checkpoint").read_text() == "step 7"
            (out / "checkpoint").unlink()
            save_contract(manifest, out / "manifest.json")
            task.publish(DatasetManifest, out / "manifest.json")

    with pytest.raises(SystemExit) as stopped:
        work()
    assert stopped.value.code == 75
    assert [k.split("/")[-1] for k in keys(server, uri)] == [PARTIAL_FILE, "checkpoint"]
    work()
    assert [k.split("/")[-1] for k in keys(server, uri)] == [TREE_FILE, "manifest.json"]


def test_a_folder_in_work_is_carried_over_without_being_asked(tmp_path: Path) -> None:
    place, root = FilePlace(tmp_path / "store"), tmp_path / "here"
    mirror = Mirror(place, root, period_s=0.02)
    (root / "train" / "k").mkdir(parents=True)
    mirror.begin(root / "train" / "k")
    (root / "train" / "k" / "step_1").write_text("1")
    for _ in range(500):
        if place.child("train/k").get_bytes(PARTIAL_FILE):
            break
        time.sleep(0.02)
    other = Mirror(place, tmp_path / "elsewhere")
    other.bring_partial(tmp_path / "elsewhere" / "train" / "k")
    assert (tmp_path / "elsewhere" / "train" / "k" / "step_1").read_text() == "1"
    mirror.abandon()


def test_a_disk_that_fails_once_ends_neither_the_carrying_nor_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is stopped carries over last: an error there would take its exit code."""
    place, root = FilePlace(tmp_path / "store"), tmp_path / "here"
    mirror = Mirror(place, root, period_s=60)
    (root / "train" / "k").mkdir(parents=True)
    (root / "train" / "k" / "step_1").write_text("1")

    def fail(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    mirror.begin(root / "train" / "k")
    with monkeypatch.context() as broken:
        broken.setattr(FilePlace, "put_file", fail)
        mirror.abandon()
    mirror.begin(root / "train" / "k")
    mirror.abandon()
    assert place.child("train/k").get_bytes("step_1") == b"1"


def test_a_file_that_was_replaced_after_the_last_look_is_left_out(tmp_path: Path) -> None:
    place, root = FilePlace(tmp_path / "store"), tmp_path / "here"
    mirror = Mirror(place, root, period_s=60)
    (root / "train" / "k").mkdir(parents=True)
    for name in ("a", "b"):
        (root / "train" / "k" / name).write_text(name)
    mirror.begin(root / "train" / "k")
    mirror.abandon()
    place.child("train/k").put_bytes("b", b"newer")
    other = Mirror(place, tmp_path / "elsewhere")
    other.bring_partial(tmp_path / "elsewhere" / "train" / "k")
    assert [p.name for p in (tmp_path / "elsewhere" / "train" / "k").iterdir()] == ["a"]


def test_an_interim_state_that_cannot_be_read_costs_its_work_alone(
    uri: str, manifest: DatasetManifest
) -> None:
    with component_task("train", "", uri) as task:
        out = task.folder({"config": "1"})
        place = open_place(f"{uri}/{out.relative_to(out.parents[1])}")
    place.put_bytes(PARTIAL_FILE, b"half of")
    with component_task("train", "", uri) as task:
        out = task.folder({"config": "1"})
        assert not task.has(DatasetManifest, out / "manifest.json")
        save_contract(manifest, out / "manifest.json")
        pointer = task.publish(DatasetManifest, out / "manifest.json")
    with component_task("evaluate", "", uri) as task:
        assert task.read(DatasetManifest, pointer)[0] == manifest


def test_a_published_result_that_was_spoilt_is_made_again(
    uri: str, manifest: DatasetManifest
) -> None:
    for expected in (False, False):
        with component_task("ingest", "", uri) as task:
            out = task.folder({"config": "1"})
            assert task.has(DatasetManifest, out / "manifest.json") is expected
            save_contract(manifest, out / "manifest.json")
            pointer = task.publish(DatasetManifest, out / "manifest.json")
        key = pointer.split(uri)[1].split('"')[0].lstrip("/")
        open_place(uri).put_bytes(key, b"spoilt")


def test_a_published_result_with_one_spoilt_file_is_made_again(
    uri: str, manifest: DatasetManifest, tmp_path: Path
) -> None:
    """Its contract is whole and comes too: it must not pass for a finished result."""
    for content in ("made first", "made again"):
        with component_task("ingest", "", uri) as task:
            out = task.folder({"config": "1"})
            assert not task.has(DatasetManifest, out / "manifest.json")
            assert not (out / "images").exists()
            (out / "images").mkdir(parents=True)
            (out / "images" / "a").write_text(content)
            save_contract(manifest, out / "manifest.json")
            pointer = task.publish(DatasetManifest, out / "manifest.json")
        with component_task("train", "", uri) as task:
            _, path = task.read(DatasetManifest, pointer)
            assert (path.parent / "images" / "a").read_text() == content
        folder = pointer.split(uri)[1].split('"')[0].strip("/").rpartition("/")[0]
        open_place(uri).put_bytes(f"{folder}/images/a", b"spoilt")
        shutil.rmtree(tmp_path / "tmp" / CACHE)  # the next task runs on another machine


def test_a_pointer_to_a_deleted_result_says_so(
    uri: str, manifest: DatasetManifest, server: Server
) -> None:
    pointer = published(uri, manifest)
    for key in keys(server, uri):
        open_place(uri).delete(key)
    store = Store(uri, program=PROGRAM)
    with pytest.raises(DataError, match="not in the store"):
        store.follow(DatasetManifest, pointer)
    store.close()


def test_scans_in_s3_are_known_by_the_digest_of_every_file(uri: str, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.nii").write_bytes(b"one")
    place = open_place(f"{uri}/scans")
    with pytest.raises(DataError, match="no published scans"):
        source_fingerprint(f"{uri}/scans")
    first = push_tree(scans, place).digest
    assert source_fingerprint(f"{uri}/scans") == first
    (scans / "a.nii").write_bytes(b"two")
    push_tree(scans, place)
    assert source_fingerprint(f"{uri}/scans") != first
    second = source_fingerprint(f"{uri}/scans")
    brought = bring_scans(f"{uri}/scans", tmp_path / "brought", second)
    assert (brought / "a.nii").read_bytes() == b"two"
    assert bring_scans(scans.as_uri(), tmp_path / "unused", first) == scans


def test_other_scans_than_the_run_was_started_with_are_not_ingested(
    uri: str, tmp_path: Path
) -> None:
    """A result is named by the digest that came with the run: it must be of those very scans."""
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.nii").write_bytes(b"one")
    started_with = push_tree(scans, open_place(f"{uri}/scans")).digest
    (scans / "a.nii").write_bytes(b"two")
    push_tree(scans, open_place(f"{uri}/scans"))
    with pytest.raises(DataError, match="not those that the run was started with"):
        bring_scans(f"{uri}/scans", tmp_path / "brought", started_with)
    assert not (tmp_path / "brought").exists()
