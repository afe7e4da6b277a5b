"""The store: one folder per result, named by what it was made from.

Equal inputs, settings and program give the same folder, so that a repeated run finds what is
there, an interrupted stage resumes in its own folder, and two runs never mix.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import sssflow
from sssflow.contracts.base import Contract, Sha256
from sssflow.contracts.pointer import Pointer
from sssflow.contracts.tree import FileTree
from sssflow.errors import DataError, UsageError
from sssflow.pipeline.mirror import Mirror
from sssflow.pipeline.whole import require_whole
from sssflow.storage.cache import FileCache
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import sha256_bytes
from sssflow.storage.places import TREE_FILE, Place, open_place, pull_files, read_tree
from sssflow.storage.uri import to_path

K = TypeVar("K", bound=Contract)

_KEY_LENGTH = 24
_CACHE_BYTES = 32 << 30
_LOG = logging.getLogger(__name__)


class Store:
    """Folders of results below `uri` (a path, `file://` or `s3://`).

    A store in S3 is worked on in a temporary folder of this process: inputs are brought there when
    they are read, a result is carried to S3 when it is finished (see `Mirror`).

    Args:
        uri: Root of the store; made when the first result is written.
        program: Digest of the code that makes the results.
    """

    def __init__(self, uri: str, *, program: Sha256) -> None:
        if not uri:
            raise UsageError(
                "The pipeline needs a place for its results.",
                where="store_uri",
                expected="a folder or a file:// address",
                found="nothing",
            )
        self._program = program
        self._mirror: Mirror | None = None
        if uri.startswith("s3://"):
            self.root = Path(tempfile.mkdtemp(prefix="sssflow-store-"))
            finished = open_place(uri, cache=_own_cache())
            self._mirror = Mirror(open_place(uri), self.root, finished=finished)
        else:
            self.root = to_path(uri).absolute()

    def close(self) -> None:
        """Carry over what is unfinished, and remove the temporary folder of a store in S3."""
        if self._mirror is not None:
            self._mirror.abandon()
            shutil.rmtree(self.root, ignore_errors=True)

    def folder(self, stage: str, inputs: Mapping[str, str]) -> Path:
        """The folder of the result that `stage` makes from `inputs` (name to digest or text)."""
        text = json.dumps(
            {"stage": stage, "program": self._program, "inputs": dict(inputs)}, sort_keys=True
        )
        return self.root / stage / sha256_bytes(text.encode())[:_KEY_LENGTH]

    def bring(self, folder: Path) -> None:
        """Bring a result of `folder` from S3, or what an interrupted task left of it.

        A published result that has changed since is passed over as a whole, and made again.
        """
        if self._mirror is None:
            return
        try:
            if self._mirror.bring(folder):
                return
        except DataError as error:
            _LOG.warning("The published result cannot be used and is made again.\n%s", error)
            # Its contract may have come already, and would pass for a finished result.
            shutil.rmtree(folder, ignore_errors=True)
        self._mirror.bring_partial(folder)

    def require_whole(self, contract: Contract, path: Path) -> None:
        """Check the files of a result that lies at `path`; `bring` has checked what came from S3.

        Raises:
            DataError: One is missing or damaged.
        """
        if self._mirror is None:
            require_whole(contract, path.parent)

    def begin(self, folder: Path) -> None:
        """Keep what the stage makes in `folder` safe while it works."""
        if self._mirror is not None:
            self._mirror.begin(folder)

    def finish(self, folder: Path) -> None:
        """Publish `folder`."""
        if self._mirror is not None:
            self._mirror.finish(folder)

    def pointer(self, contract: Contract, path: Path) -> str:
        """Pointer JSON (one line) to a contract that lies at `path` in this store."""
        return write_pointer(contract, path, address=self.address(path))

    def address(self, path: Path) -> str:
        """Address of `path` for readers elsewhere."""
        return path.absolute().as_uri() if self._mirror is None else self._mirror.address(path)

    def follow(
        self, kind: type[K], text: str, files_of: Callable[[K], Collection[str]] | None = None
    ) -> tuple[K, Path]:
        """`follow_pointer`, for results of a store in S3 too.

        Args:
            kind: Class of the contract.
            text: The pointer.
            files_of: Files beside the contract that this task needs, relative to it; the others
                are not brought from S3. Without it all are.
        """
        if files_of is None or self._mirror is None:
            return follow_pointer(kind, text, locate=self._located)
        contract, path = follow_pointer(kind, text, locate=self._located_alone)
        self._bring_of(path, set(files_of(contract)))
        return contract, path

    def _located_alone(self, address: str) -> Path:
        path = None if self._mirror is None else self._mirror.path(address)
        return to_path(address) if path is None else self._bring_of(path, {path.name})

    def _bring_of(self, path: Path, names: Collection[str]) -> Path:
        """Files beside `path`, if it is in this store."""
        if path.is_relative_to(self.root):
            beside = path.parent.relative_to(self._folder_of(path))
            wanted = {(beside / name).as_posix() for name in names}
            self._bring_result(path, wanted.__contains__)
        return path

    def _located(self, address: str) -> Path:
        path = None if self._mirror is None else self._mirror.path(address)
        if path is None:
            return to_path(address)
        self._bring_result(path, None)
        return path

    def _folder_of(self, path: Path) -> Path:
        return self.root.joinpath(*path.relative_to(self.root).parts[:2])

    def _bring_result(self, path: Path, wanted: Callable[[str], bool] | None) -> None:
        if self._mirror is not None and not self._mirror.bring(self._folder_of(path), wanted):
            raise DataError(
                "A result that was handed on is not in the store.",
                where=self._mirror.address(path),
                action="Run the pipeline again without its cache; someone may have deleted it.",
            )


def _own_cache() -> FileCache | None:
    """What this user brought from S3 before: scans too, so that nobody else may read it.

    None where a folder of that name is open to others or theirs.
    """
    root = Path(tempfile.gettempdir()) / f"sssflow-cache-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        root.mkdir(mode=0o700)
    facts = root.lstat()
    own = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
    return FileCache(root, bound_bytes=_CACHE_BYTES) if own and not facts.st_mode & 0o077 else None


def write_pointer(contract: Contract, path: Path, *, address: str = "") -> str:
    """Pointer JSON (one line) to a contract that lies at `path`, for readers at `address`."""
    pointer = Pointer(uri=address or path.absolute().as_uri(), content_digest=contract.digest)
    return json.dumps(json.loads(pointer.to_json()), sort_keys=True, separators=(",", ":"))


def follow_pointer(
    kind: type[K], text: str, *, locate: Callable[[str], Path] = to_path
) -> tuple[K, Path]:
    """Read the contract that a pointer names, and where it lies.

    Args:
        kind: Class of the contract.
        text: The pointer.
        locate: From its address to a path of this machine.

    Raises:
        DataError: The pointer or the contract cannot be read, or the contract has changed.
    """
    pointer = Pointer.from_json(text, where=f"pointer to a {kind.schema_name}")
    path = locate(pointer.uri)
    contract = load_contract(kind, path)
    if contract.digest != pointer.content_digest:
        raise DataError(
            f"The {kind.schema_name} has changed since it was handed on.",
            where=path,
            expected=f"digest {pointer.content_digest}",
            found=contract.digest,
            action="Run the pipeline again; remove the folder if it was edited by hand.",
        )
    return contract, path


def bring_scans(source: str, folder: Path, fingerprint: Sha256) -> Path:
    """A local folder with the scans at `source`: itself, or a verified copy of those in S3.

    Args:
        source: A path, `file://` or `s3://`.
        folder: Where a copy is to lie.
        fingerprint: What the scans are known by; those in S3 must still be the ones it names.

    Raises:
        DataError: `s3://` scans without a manifest, with a file that has changed, or others than
            those of the fingerprint.
        UnavailableError: The store cannot be used now.
    """
    if not source.startswith("s3://"):
        return to_path(source)
    tree, place = _published_scans(source)
    if tree.digest != fingerprint:
        raise DataError(
            "The scans at this address are not those that the run was started with.",
            where=source,
            expected=f"digest {fingerprint}",
            found=tree.digest,
            action="Start the pipeline anew for the scans that lie there now, or push the former "
            "ones again. A digest given by hand is the one that `sssflow data push` told.",
        )
    pull_files(tree, place, folder)
    return folder


def source_fingerprint(source: str) -> Sha256:
    """Digest over the scans at `source`, without reading them all.

    Of a folder: names, sizes and times, behind links too. Of scans in S3: their manifest, which
    holds the digest of every file.

    Raises:
        DataError: `source` does not exist.
    """
    if source.startswith("s3://"):
        return _published_scans(source)[0].digest
    return _folder_fingerprint(to_path(source))


def _published_scans(source: str) -> tuple[FileTree, Place]:
    place = open_place(source)
    tree = read_tree(place)
    if tree is None:
        raise DataError(
            "There are no published scans at this address.",
            where=source,
            expected=TREE_FILE,
            action="Copy them there with `sssflow data push FOLDER ADDRESS`.",
        )
    return tree, place


def _folder_fingerprint(source: Path) -> Sha256:
    if not source.exists():
        raise DataError(
            "The folder of scans does not exist.",
            where=source,
            action="Check the path; a pipeline on a cluster sees the pod's file system only.",
        )
    files = [source] if source.is_file() else sorted(_files_below(source, frozenset()))
    facts = [
        (path.relative_to(source).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
    ]
    return sha256_bytes(json.dumps(facts).encode())


def _files_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """The files that ingest can reach, through linked folders too; `above` guards against loops."""
    real = folder.resolve()
    if real in above:
        return
    # A folder that may not be read is for ingest to tell.
    with contextlib.suppress(PermissionError):
        for path in folder.iterdir():
            if path.is_dir():
                yield from _files_below(path, above | {real})
            elif path.is_file():
                yield path


@lru_cache(maxsize=1)
def program_digest() -> Sha256:
    """Digest over every file of the installed package: other code, other results."""
    root = Path(sssflow.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()
