"""Folders of objects behind one interface, whether they lie on a disk or in an S3 store.

A tree (a folder) is published by its manifest, which is written after all of its files. Readers
list nothing: they read the manifest and verify every file by size and SHA-256.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.tree import FileTree
from sssflow.errors import DataError
from sssflow.storage.atomic import disk_errors, write_atomically, write_bytes
from sssflow.storage.cache import FileCache
from sssflow.storage.digest import reference, sha256_bytes, sha256_file, verified_path
from sssflow.storage.names import require_text_name
from sssflow.storage.s3 import S3Store
from sssflow.storage.s3_calls import S3Address, S3Config
from sssflow.storage.uri import below, to_path

T = TypeVar("T")
R = TypeVar("R")

TREE_FILE = "TREE.json"
_LARGEST_TREE_FILE_BYTES = 64 << 20
_AT_A_TIME = 8


class Place(ABC):
    """Named objects below one root. Names are relative, with `/`, and never climb."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """Address of the root, without a final slash."""

    @abstractmethod
    def child(self, name: str) -> Place:
        """The place below this one."""

    @abstractmethod
    def get_bytes(self, name: str) -> bytes | None:
        """A small object; None if it does not exist."""

    @abstractmethod
    def get_file(self, ref: ObjectRef, target: Path) -> None:
        """Write the object `ref.uri` to `target`, verified; all or nothing."""

    @abstractmethod
    def put_bytes(self, name: str, data: bytes) -> ObjectRef:
        """Write a small object; all or nothing."""

    @abstractmethod
    def put_file(self, path: Path, name: str) -> ObjectRef:
        """Write a file; all or nothing. An equal object that is there stays as it is."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete one object; one that does not exist is no error."""


class FilePlace(Place):
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def uri(self) -> str:
        """See `Place.uri`."""
        return self._root.as_uri()

    def child(self, name: str) -> FilePlace:
        """See `Place.child`."""
        return FilePlace(below(name, base=self._root))

    def get_bytes(self, name: str) -> bytes | None:
        """See `Place.get_bytes`."""
        try:
            return below(name, base=self._root).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def get_file(self, ref: ObjectRef, target: Path) -> None:
        """See `Place.get_file`."""
        below(ref.uri, base=self._root)
        path = verified_path(ref, base=self._root)
        with path.open("rb") as source:
            write_atomically(target, lambda file: shutil.copyfileobj(source, file))
        if sha256_file(target) != ref.sha256:
            target.unlink()
            raise DataError(
                "A file was replaced while it was copied.",
                where=path,
                action="Run the command again when nothing else writes there.",
            )

    def put_bytes(self, name: str, data: bytes) -> ObjectRef:
        """See `Place.put_bytes`."""
        write_bytes(below(name, base=self._root), data)
        return ObjectRef(uri=name, size_bytes=len(data), sha256=sha256_bytes(data))

    def put_file(self, path: Path, name: str) -> ObjectRef:
        """See `Place.put_file`."""
        target = below(name, base=self._root)
        ref = ObjectRef(uri=name, size_bytes=path.stat().st_size, sha256=sha256_file(path))
        if not (target.is_file() and sha256_file(target) == ref.sha256):
            with path.open("rb") as source:
                write_atomically(target, lambda file: shutil.copyfileobj(source, file))
        return ref

    def delete(self, name: str) -> None:
        """See `Place.delete`."""
        with disk_errors(self._root):
            below(name, base=self._root).unlink(missing_ok=True)


class S3Place(Place):
    """A prefix of an S3 bucket.

    Args:
        store: The S3 store.
        root: Bucket and prefix.
        cache: Keeps verified files by digest, so that the next reader here need not fetch them.
    """

    def __init__(self, store: S3Store, root: S3Address, cache: FileCache | None = None) -> None:
        self._store = store
        self._root = root
        self._cache = cache

    @property
    def uri(self) -> str:
        """See `Place.uri`."""
        return self._root.uri.rstrip("/")

    def child(self, name: str) -> S3Place:
        """See `Place.child`."""
        return S3Place(self._store, self._root.child(name), self._cache)

    def get_bytes(self, name: str) -> bytes | None:
        """See `Place.get_bytes`."""
        return self._store.get_bytes(self._root.child(name), limit_bytes=_LARGEST_TREE_FILE_BYTES)

    def get_file(self, ref: ObjectRef, target: Path) -> None:
        """See `Place.get_file`."""
        address = self._root.child(ref.uri)
        if self._cache is None:
            self._store.get_file(address, ref, target)
            return
        self._cache.fetch(ref, target, lambda path: self._store.get_file(address, ref, path))

    def put_bytes(self, name: str, data: bytes) -> ObjectRef:
        """See `Place.put_bytes`."""
        return self._store.put_bytes(self._root.child(name), data).model_copy(update={"uri": name})

    def put_file(self, path: Path, name: str) -> ObjectRef:
        """See `Place.put_file`."""
        return self._store.put_file(path, self._root.child(name)).model_copy(update={"uri": name})

    def delete(self, name: str) -> None:
        """See `Place.delete`."""
        self._store.delete(self._root.child(name))


def open_place(uri: str, *, s3: S3Config | None = None, cache: FileCache | None = None) -> Place:
    """The place that an address names: `s3://bucket/prefix`, `file:///folder` or a plain path.

    Raises:
        UsageError: Another scheme, or an S3 address without a bucket.
    """
    if uri.startswith("s3://"):
        return S3Place(S3Store(s3), S3Address.parse(uri.rstrip("/")), cache)
    return FilePlace(to_path(uri))


def carried_files(folder: Path) -> list[Path]:
    """The files of a folder that travel: no hidden one (temporary, lock), no link; sorted.

    Raises:
        DataError: A name is not UTF-8.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    for path in files:
        require_text_name(path.relative_to(folder))
    return files


def push_tree(folder: Path, place: Place) -> FileTree:
    """Copy a folder's files to a place, then its manifest. Equal files that are there stay.

    Hidden files and links are left out. Files travel side by side.
    """
    files = [path for path in carried_files(folder) if path != folder / TREE_FILE]
    refs = _side_by_side(
        lambda path: place.put_file(path, path.relative_to(folder).as_posix()), files
    )
    tree = FileTree(files=tuple(sorted(refs, key=lambda ref: ref.uri)))
    place.put_bytes(TREE_FILE, tree.to_json().encode())
    return tree


def read_tree(place: Place, *, manifest: str = TREE_FILE) -> FileTree | None:
    """The manifest of a published tree; None if there is none."""
    data = place.get_bytes(manifest)
    return None if data is None else FileTree.from_json(data, where=f"{place.uri}/{manifest}")


def pull_tree(
    place: Place, folder: Path, *, wanted: Callable[[str], bool] = lambda _: True
) -> FileTree | None:
    """Bring a published tree into `folder`, every file verified; None if there is none.

    Files that are there with the right digest are not fetched. A kill leaves whole files only.

    Args:
        place: Where the tree was published.
        folder: Where it is to lie.
        wanted: Whether a file, by its name in the tree, is to come.
    """
    tree = read_tree(place)
    if tree is not None:
        pull_files(tree, place, folder, wanted=wanted)
    return tree


def pull_files(
    tree: FileTree, place: Place, folder: Path, *, wanted: Callable[[str], bool] = lambda _: True
) -> None:
    """`pull_tree` of a tree whose manifest was read before."""

    def fetch(ref: ObjectRef) -> None:
        target = below(ref.uri, base=folder)
        if not (target.is_file() and reference(target).sha256 == ref.sha256):
            place.get_file(ref, target)

    _side_by_side(fetch, [ref for ref in tree.files if wanted(ref.uri)])


def _side_by_side(call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`call` of every item, some at a time, in order; after the first failure none begins."""
    pool = ThreadPoolExecutor(_AT_A_TIME)
    try:
        return list(pool.map(call, items))
    finally:
        pool.shutdown(cancel_futures=True)
