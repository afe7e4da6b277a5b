"""SHA-256 of files, arrays and tensors, and checked reading of what a digest names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.base import ObjectRef, Sha256
from sssflow.errors import DataError
from sssflow.storage.uri import resolve

_BLOCK_BYTES = 1 << 20


def sha256_bytes(data: bytes) -> Sha256:
    """SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> Sha256:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> Sha256:
    """SHA-256 over names, dtypes, shapes and values, in name order: equal tensors, equal digest."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def reference(path: Path, *, base: Path | None = None) -> ObjectRef:
    """Describe a file by relative URI (to `base`, default its own folder), size and digest."""
    uri = path.relative_to(base if base is not None else path.parent).as_posix()
    return ObjectRef(uri=uri, size_bytes=path.stat().st_size, sha256=sha256_file(path))


def verified_path(ref: ObjectRef, *, base: Path) -> Path:
    """Local path of an object whose size and SHA-256 were just checked.

    Raises:
        DataError: The file is missing, has another size, or another digest.
    """
    path = resolve(ref.uri, base=base)
    if not path.is_file():
        raise DataError(
            "A file named by a manifest is missing.", where=path, action="Run the stage again."
        )
    size_bytes = path.stat().st_size
    if size_bytes != ref.size_bytes:
        raise DataError(
            "A file has another size than its manifest says.",
            where=path,
            expected=f"{ref.size_bytes} bytes",
            found=f"{size_bytes} bytes",
            action="Run the stage that wrote it again.",
        )
    found = sha256_file(path)
    if found != ref.sha256:
        raise DataError(
            "A file has another content than its manifest says.",
            where=path,
            expected=f"SHA-256 {ref.sha256}",
            found=found,
            action="Run the stage that wrote it again.",
        )
    return path
