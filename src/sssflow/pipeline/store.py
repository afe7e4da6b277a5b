"""The store: one folder per result, named by what it was made from.

Equal inputs, settings and program give the same folder, so that a repeated run finds what is
there, an interrupted stage resumes in its own folder, and two runs never mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import sssflow
from sssflow.contracts.base import Contract, Sha256
from sssflow.contracts.pointer import Pointer
from sssflow.errors import DataError, UsageError
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import sha256_bytes
from sssflow.storage.uri import to_path

K = TypeVar("K", bound=Contract)

_KEY_LENGTH = 24


class Store:
    """Folders of results below `uri` (a path or `file://`).

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
        self.root = to_path(uri).absolute()
        self._program = program

    def folder(self, stage: str, inputs: Mapping[str, str]) -> Path:
        """The folder of the result that `stage` makes from `inputs` (name to digest or text)."""
        text = json.dumps(
            {"stage": stage, "program": self._program, "inputs": dict(inputs)}, sort_keys=True
        )
        return self.root / stage / sha256_bytes(text.encode())[:_KEY_LENGTH]


def write_pointer(contract: Contract, path: Path) -> str:
    """Pointer JSON (one line) to a contract that lies at `path`."""
    pointer = Pointer(uri=path.absolute().as_uri(), content_digest=contract.digest)
    return json.dumps(json.loads(pointer.to_json()), sort_keys=True, separators=(",", ":"))


def follow_pointer(kind: type[K], text: str) -> tuple[K, Path]:
    """Read the contract that a pointer names, and where it lies.

    Raises:
        DataError: The pointer or the contract cannot be read, or the contract has changed.
    """
    pointer = Pointer.from_json(text, where=f"pointer to a {kind.schema_name}")
    path = to_path(pointer.uri)
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


def source_fingerprint(source: Path) -> Sha256:
    """Digest over name, size and time of every file below `source`, without reading them.

    Raises:
        DataError: `source` does not exist.
    """
    if not source.exists():
        raise DataError(
            "The folder of scans does not exist.",
            where=source,
            action="Check the path; a pipeline on a cluster sees the pod's file system only.",
        )
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    facts = [
        (path.relative_to(source).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
    ]
    return sha256_bytes(json.dumps(facts).encode())


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
