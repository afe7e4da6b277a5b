"""Packed arrays come back bit for bit, slice by slice, or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from sssflow.contracts.base import ObjectRef
from sssflow.errors import DataError, UnavailableError
from sssflow.storage import atomic
from sssflow.storage.digest import reference
from sssflow.volume import packed
from sssflow.volume.packed import open_packed, read_packed, write_packed


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (2, 3, 4, 5)])
def test_every_dtype_and_shape_comes_back_bit_for_bit(
    tmp_path: Path, dtype: type[np.generic], shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    ref = write_packed(tmp_path / "images" / "a.b2nd", array, base=tmp_path)
    assert ref.uri == "images/a.b2nd"
    found = read_packed(ref, base=tmp_path, shape=shape)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_special_values_survive(tmp_path: Path) -> None:
    array = np.array([[[np.nan, np.inf, -0.0, 1e-45]]], np.float32)
    found = read_packed(write_packed(tmp_path / "a.b2nd", array), base=tmp_path)
    assert found.tobytes() == array.tobytes()


def test_one_slice_is_one_chunk_and_can_be_read_alone(tmp_path: Path) -> None:
    array = np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5)
    write_packed(tmp_path / "a.b2nd", array)
    opened = open_packed(tmp_path / "a.b2nd")
    assert opened.chunks == (1, 6, 5)
    np.testing.assert_array_equal(opened[2], array[2])


def test_equal_arrays_give_equal_bytes_whatever_their_memory_layout(tmp_path: Path) -> None:
    array = np.random.default_rng(2).random((3, 8, 9)).astype(np.float32)
    a = write_packed(tmp_path / "a.b2nd", array)
    b = write_packed(tmp_path / "b.b2nd", np.asfortranarray(array))
    assert a.sha256 == b.sha256


def test_damage_is_found_before_a_value_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.b2nd"
    ref = write_packed(path, np.ones((2, 9, 9), np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="another content"):
        read_packed(ref, base=tmp_path)
    path.write_bytes(bytes(data[:-5]))
    with pytest.raises(DataError, match="another size"):
        read_packed(ref, base=tmp_path)


def test_a_foreign_file_with_a_fitting_digest_is_still_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.b2nd"
    path.write_bytes(b"not blosc2 at all")
    with pytest.raises(DataError, match="Not a packed array"):
        read_packed(reference(path), base=tmp_path)


def test_another_shape_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    ref = write_packed(tmp_path / "a.b2nd", np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(DataError, match="another shape") as caught:
        read_packed(ref, base=tmp_path, shape=(2, 4, 3))
    assert "(2, 4, 3)" in str(caught.value)


def test_an_unbearable_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_packed(tmp_path / "a.b2nd", np.zeros((2, 3, 4), np.uint8))
    monkeypatch.setattr(packed, "_MAX_VOXELS", 23)
    with pytest.raises(DataError, match="bearable size"):
        open_packed(tmp_path / "a.b2nd")


def test_a_reference_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    ref = write_packed(tmp_path / "a.b2nd", np.zeros((1, 2, 2), np.uint8))
    stray = ObjectRef(uri="../a.b2nd", size_bytes=ref.size_bytes, sha256=ref.sha256)
    with pytest.raises(DataError, match="outside"):
        read_packed(stray, base=tmp_path / "below")


def test_a_full_disk_is_exit_69_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = write_packed(tmp_path / "a.b2nd", np.ones((1, 2, 2), np.uint8))

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    with pytest.raises(UnavailableError, match="No space left"):
        write_packed(tmp_path / "a.b2nd", np.zeros((1, 2, 2), np.uint8))
    monkeypatch.undo()
    assert read_packed(ref, base=tmp_path).sum() == 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.b2nd"]
