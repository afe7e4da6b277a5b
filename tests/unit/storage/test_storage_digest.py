"""Digests name content, and a reader trusts nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.pointer import Pointer
from sssflow.errors import DataError, UsageError
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import (
    reference,
    sha256_arrays,
    sha256_bytes,
    sha256_file,
    verified_path,
)
from sssflow.storage.uri import resolve, to_path

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_gives_the_published_values(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_bytes(b"") == EMPTY
    assert sha256_bytes(b"abc") == sha256_file(path) == ABC


def test_a_file_longer_than_one_block_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = bytes(range(256)) * 8192 + b"end"
    path.write_bytes(data)
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()


def test_arrays_have_one_digest_for_any_order_and_memory_layout() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    b = np.ones(2, dtype=np.uint8)
    first = sha256_arrays({"a": a, "b": b})
    assert first == sha256_arrays({"b": b, "a": np.asfortranarray(a)})


@pytest.mark.parametrize(
    "other",
    [
        {"c": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.full((2, 3), -0.0, np.float32)},
    ],
)
def test_name_shape_dtype_and_value_all_count(other: dict[str, np.ndarray]) -> None:
    assert sha256_arrays({"a": np.zeros((2, 3), np.float32)}) != sha256_arrays(other)


def test_a_reference_leads_back_to_the_checked_file(tmp_path: Path) -> None:
    path = tmp_path / "images" / "a.bin"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    ref = reference(path, base=tmp_path)
    assert ref == ObjectRef(uri="images/a.bin", size_bytes=3, sha256=ABC)
    assert verified_path(ref, base=tmp_path) == path


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "missing"), (b"abcd", "another size"), (b"abd", "another content")],
)
def test_a_file_that_is_not_what_was_named_is_refused(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    ref = reference(path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        verified_path(ref, base=tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("uri", ["../a", "/etc/passwd", "a/../../b", "a\x00b", ".."])
def test_a_relative_address_cannot_leave_its_folder(tmp_path: Path, uri: str) -> None:
    with pytest.raises(DataError, match="outside its own folder"):
        resolve(uri, base=tmp_path)


def test_addresses_become_paths(tmp_path: Path) -> None:
    assert resolve("a/b.bin", base=tmp_path) == tmp_path / "a" / "b.bin"
    assert resolve("file:///data/with%20space", base=tmp_path) == Path("/data/with space")
    assert to_path("plain/path") == Path("plain/path")
    assert to_path("file:///data/x") == Path("/data/x")


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/key", "http://host/file", "file://scans/acdc", "file://scans", "file://[x/y"],
)
def test_an_address_of_another_kind_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UsageError, match="cannot be read here"):
        resolve(uri, base=tmp_path)
    with pytest.raises(UsageError, match="cannot be read here"):
        to_path(uri)


def test_a_contract_is_written_and_read_back(tmp_path: Path) -> None:
    pointer = Pointer(uri="file:///a", content_digest=ABC)
    path = save_contract(pointer, tmp_path / "deep" / "pointer.json")
    assert load_contract(Pointer, path) == pointer
    assert path.read_text().endswith("}\n")


def test_a_missing_contract_is_a_data_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_contract(Pointer, tmp_path / "none.json")
    assert str(tmp_path / "none.json") in str(caught.value)
