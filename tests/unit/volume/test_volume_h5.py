"""Reading HDF5: one data set, bounded, stored in the file itself."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from sssflow.errors import DataError
from sssflow.volume.h5 import read_h5, shape_of_h5

MANY = 1 << 20


def test_values_come_as_stored_in_native_byte_order(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.array([[1.5, -2.0]], ">f4")
    values = read_h5(tmp_path / "a.h5", "image", ndim=2, max_voxels=MANY)
    assert values.tolist() == [[1.5, -2.0]]
    assert values.dtype == np.dtype("=f4")
    assert shape_of_h5(tmp_path / "a.h5", "image") == (1, 2)


def test_reading_the_image_never_touches_the_mask_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    mask = np.random.default_rng(0).integers(0, 250, (64, 64)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file["image"] = np.ones((2, 2), np.float32)
        file.create_dataset("label", data=mask, compression="gzip")
        start = file["label"].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[start : start + 200] = bytes(200)
    path.write_bytes(raw)
    with pytest.raises(DataError, match="damaged"):
        read_h5(path, "label", ndim=2, max_voxels=MANY)
    assert read_h5(path, "image", ndim=2, max_voxels=MANY).sum() == 4


def test_a_declared_size_above_the_limit_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", shape=(1 << 20, 1 << 20), dtype="f4", chunks=(16, 16))
    assert (tmp_path / "a.h5").stat().st_size < 10_000
    with pytest.raises(DataError, match="larger than the limit"):
        read_h5(tmp_path / "a.h5", "image", ndim=2, max_voxels=MANY)


def test_links_external_and_virtual_data_sets_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["image"] = np.zeros((2, 2), np.float32)
    (tmp_path / "raw").write_bytes(bytes(16))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["external_link"] = h5py.ExternalLink(str(other), "/image")
        file["soft_link"] = h5py.SoftLink("/external_link")
        layout = h5py.VirtualLayout((2, 2), "f4")
        layout[:] = h5py.VirtualSource(str(other), "image", (2, 2))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset(
            "external", shape=(2, 2), dtype="f4", external=[(str(tmp_path / "raw"), 0, 16)]
        )
        file.create_group("group")
    for key in ("external_link", "soft_link", "virtual", "external", "group"):
        with pytest.raises(DataError, match="not stored inside its file"):
            read_h5(tmp_path / "a.h5", key, ndim=2, max_voxels=MANY)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([["x"]], "S1"), "real numbers"),
        (np.zeros((2, 2), np.complex64), "real numbers"),
        (np.zeros((0, 2), np.float32), "another form"),
        (np.zeros((2, 2, 2), np.float32), "another form"),
        (np.float32(1), "another form"),
    ],
)
def test_other_forms_of_data_are_refused(tmp_path: Path, value: object, message: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = value
    with pytest.raises(DataError, match=message):
        read_h5(tmp_path / "a.h5", "image", ndim=2, max_voxels=MANY)
