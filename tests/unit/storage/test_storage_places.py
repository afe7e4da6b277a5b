"""Trees of files on a disk and in S3 behind one interface, and the cache of verified files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from s3_server import Server
from sssflow.contracts.base import ObjectRef
from sssflow.contracts.tree import FileTree
from sssflow.errors import DataError, UsageError
from sssflow.storage.cache import FileCache
from sssflow.storage.digest import reference, sha256_bytes
from sssflow.storage.places import (
    TREE_FILE,
    FilePlace,
    Place,
    S3Place,
    open_place,
    pull_tree,
    push_tree,
    read_tree,
)
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Address


@pytest.fixture(params=["file", "s3"])
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server: Server,
    connect: Callable[..., S3Store],
) -> Place:
    if request.param == "file":
        return FilePlace(tmp_path / "place")
    return S3Place(connect(server.url), S3Address("bucket", f"places/{tmp_path.name}"))


def folder_with(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_tree_comes_back_as_it_went_without_hidden_files(place: Place, tmp_path: Path) -> None:
    source = folder_with(tmp_path / "source", a="1", sub__b="22", sub__deep__c="")
    folder_with(source, **{".lock": "x", "sub__.b.1.sssflow-tmp": "half"})
    (source / "link").symlink_to(source / "a")
    tree = push_tree(source, place)
    assert [ref.uri for ref in tree.files] == ["a", "sub/b", "sub/deep/c"]
    assert pull_tree(place, tmp_path / "target") == tree
    assert (tmp_path / "target" / "sub" / "b").read_text() == "22"
    found = [p for p in (tmp_path / "target").rglob("*") if p.is_file()]
    assert len(found) == 3


def test_a_place_without_a_manifest_holds_no_tree(place: Place, tmp_path: Path) -> None:
    place.put_bytes("a", b"1")
    assert read_tree(place) is None
    assert pull_tree(place, tmp_path / "target") is None
    assert place.get_bytes("nothing") is None


def test_only_what_differs_is_fetched(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_tree(folder_with(tmp_path / "source", a="1", b="2", c="3"), place)
    target = folder_with(tmp_path / "target", a="1", b="spoilt")
    fetched: list[str] = []
    get_file = place.get_file

    def note(ref: ObjectRef, path: Path) -> None:
        fetched.append(ref.uri)
        get_file(ref, path)

    monkeypatch.setattr(place, "get_file", note)
    pull_tree(place, target)
    assert sorted(fetched) == ["b", "c"]
    assert (target / "b").read_text() == "2"


def test_a_changed_object_of_a_tree_is_refused(place: Place, tmp_path: Path) -> None:
    push_tree(folder_with(tmp_path / "source", a="first"), place)
    place.put_bytes("a", b"other")
    with pytest.raises(DataError):
        pull_tree(place, tmp_path / "target")
    assert not (tmp_path / "target" / "a").exists()


def test_a_manifest_that_climbs_is_refused(place: Place, tmp_path: Path) -> None:
    ref = ObjectRef(uri="../escape", size_bytes=1, sha256=sha256_bytes(b"1"))
    place.put_bytes(TREE_FILE, FileTree(files=(ref,)).to_json().encode())
    with pytest.raises(DataError, match="outside"):
        pull_tree(place, tmp_path / "target")


def test_a_manifest_with_an_absolute_name_writes_nothing_outside(tmp_path: Path) -> None:
    class Giving(FilePlace):
        def get_file(self, ref: ObjectRef, target: Path) -> None:
            target.write_bytes(b"taken over")

    place, victim = Giving(tmp_path / "place"), tmp_path / "victim"
    ref = ObjectRef(uri=victim.as_uri(), size_bytes=1, sha256=sha256_bytes(b"1"))
    place.put_bytes(TREE_FILE, FileTree(files=(ref,)).to_json().encode())
    with pytest.raises(DataError, match="outside"):
        pull_tree(place, tmp_path / "target")
    assert not victim.exists()


def test_a_name_with_a_colon_is_a_name_and_no_address(place: Place, tmp_path: Path) -> None:
    push_tree(folder_with(tmp_path / "source", **{"T1:axial__a:b": "1"}), place)
    pull_tree(place, tmp_path / "target")
    assert (tmp_path / "target" / "T1:axial" / "a:b").read_text() == "1"


def test_of_a_tree_only_what_is_wanted_comes(place: Place, tmp_path: Path) -> None:
    push_tree(folder_with(tmp_path / "source", a="1", b__x="2", b__y="3"), place)
    pull_tree(place, tmp_path / "target", wanted=lambda name: name in {"a", "b/y"})
    found = sorted(p.name for p in (tmp_path / "target").rglob("*") if p.is_file())
    assert found == ["a", "y"]


def test_after_a_file_that_cannot_be_brought_no_further_one_is_begun(tmp_path: Path) -> None:
    asked: list[str] = []

    class Broken(FilePlace):
        def get_file(self, ref: ObjectRef, target: Path) -> None:
            asked.append(ref.uri)
            raise DataError("gone")

    place = Broken(tmp_path / "place")
    push_tree(folder_with(tmp_path / "source", **{f"f{i:04}": "x" for i in range(500)}), place)
    with pytest.raises(DataError, match="gone"):
        pull_tree(place, tmp_path / "target")
    assert len(asked) < 500


def test_deleting_twice_is_no_error(place: Place) -> None:
    place.put_bytes("a", b"1")
    place.delete("a")
    place.delete("a")
    assert place.child("sub").uri == f"{place.uri}/sub"
    assert place.get_bytes("a") is None


def test_an_address_of_another_scheme_is_refused(tmp_path: Path) -> None:
    assert isinstance(open_place(str(tmp_path)), FilePlace)
    assert open_place(tmp_path.as_uri()).uri == tmp_path.as_uri()
    with pytest.raises(UsageError):
        open_place("gs://bucket/x")


def test_a_tree_names_each_file_once_and_in_order() -> None:
    ref = ObjectRef(uri="a", size_bytes=1, sha256="0" * 64)
    with pytest.raises(ValueError, match="sorted"):
        FileTree(files=(ref, ref))


class Counted:
    """Writes content, and counts how often it was asked to."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.calls = 0

    def __call__(self, path: Path) -> None:
        self.calls += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)


def ref_of(data: bytes) -> ObjectRef:
    return ObjectRef(uri="x", size_bytes=len(data), sha256=sha256_bytes(data))


def test_the_cache_loads_once_and_mends_what_was_damaged(tmp_path: Path) -> None:
    cache, load = FileCache(tmp_path / "cache", bound_bytes=100), Counted(b"content")
    for i in range(3):
        cache.fetch(ref_of(b"content"), tmp_path / str(i), load)
    assert load.calls == 1
    entry = next((tmp_path / "cache").glob("??/*"))
    entry.unlink()
    entry.write_bytes(b"damaged")
    cache.fetch(ref_of(b"content"), tmp_path / "3", load)
    assert load.calls == 2
    assert all((tmp_path / str(i)).read_bytes() == b"content" for i in range(4))


def test_the_cache_forgets_what_was_used_longest_ago_and_keeps_its_bound(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", bound_bytes=25)
    loads = {name: Counted(name.encode() * 10) for name in "abc"}
    for i, name in enumerate("ab"):
        cache.fetch(ref_of(loads[name].data), tmp_path / name, loads[name])
        os.utime(tmp_path / name, (i, i))  # one file under two names: the entry ages with it
    cache.fetch(ref_of(loads["a"].data), tmp_path / "a2", loads["a"])
    cache.fetch(ref_of(loads["c"].data), tmp_path / "c", loads["c"])
    assert cache.size_bytes == 20
    cache.fetch(ref_of(loads["a"].data), tmp_path / "a3", loads["a"])
    assert loads["a"].calls == 1
    assert (tmp_path / "b").read_bytes() == b"b" * 10
    cache.fetch(ref_of(loads["b"].data), tmp_path / "b2", loads["b"])
    assert loads["b"].calls == 2


def test_the_cache_looks_through_its_folder_once_for_many_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileCache(tmp_path / "cache", bound_bytes=8000)
    looks: list[bool] = []
    entries = cache._entries
    monkeypatch.setattr(cache, "_entries", lambda: looks.append(True) or entries())
    for i in range(200):
        load = Counted(f"{i:010}".encode())
        cache.fetch(ref_of(load.data), tmp_path / str(i), load)
    # 2000 bytes, and a look for every eighth of the bound that came in.
    assert len(looks) == 2


def test_a_file_larger_than_the_cache_passes_by_it(tmp_path: Path) -> None:
    cache, load = FileCache(tmp_path / "cache", bound_bytes=3), Counted(b"content")
    cache.fetch(ref_of(b"content"), tmp_path / "f", load)
    assert (tmp_path / "f").read_bytes() == b"content"
    assert cache.size_bytes == 0


def test_a_cached_tree_is_fetched_once_for_two_folders(
    tmp_path: Path, server: Server, connect: Callable[..., S3Store]
) -> None:
    store = connect(server.url)
    cache = FileCache(tmp_path / "cache", bound_bytes=1 << 20)
    place = S3Place(store, S3Address("bucket", "cached"), cache)
    push_tree(folder_with(tmp_path / "source", a="1" * 1000), place)
    pull_tree(place, tmp_path / "one")
    store.delete(S3Address("bucket", "cached/a"))
    pull_tree(place, tmp_path / "two")
    assert reference(tmp_path / "two" / "a").sha256 == sha256_bytes(b"1" * 1000)
