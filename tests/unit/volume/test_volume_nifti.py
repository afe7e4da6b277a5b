"""Reading NIfTI with distrust, writing masks on the grid they came from."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from sssflow.errors import DataError
from sssflow.volume.geometry import affine_of, grid_without_spacing
from sssflow.volume.nifti import read_nifti, write_label_like

MANY = 1 << 20
SIGNS = list(itertools.product((1.0, -1.0), repeat=3))


def oblique(signs: tuple[float, ...], angle: float) -> NDArray[np.float64]:
    """Rotation about z and x, spacings of three lengths, and flips."""
    c, s = np.cos(angle), np.sin(angle)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    about_x = np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([0.7, 1.3, 5.1]) @ np.diag(signs)
    affine[:3, 3] = (-101.3, 57.77, 13.1)
    return affine


def save(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_voxels_come_as_slices_rows_columns(tmp_path: Path) -> None:
    source = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    volume = read_nifti(save(tmp_path / "a.nii.gz", source, np.eye(4)), max_voxels=MANY)
    assert volume.array_shw.shape == volume.grid.shape_shw == (4, 3, 2)
    assert volume.array_shw[3, 1, 0] == source[0, 1, 3]
    assert volume.array_shw.dtype == np.int16


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("form", ["sform", "qform", "nifti2"])
@pytest.mark.parametrize("signs", SIGNS)
def test_a_mask_goes_back_with_a_bit_equal_affine_in_eight_orientations(
    tmp_path: Path, signs: tuple[float, ...], form: str, suffix: str
) -> None:
    rng = np.random.default_rng(4)
    for angle in (0.0, 0.3):
        kind = nib.Nifti2Image if form == "nifti2" else nib.Nifti1Image
        image = kind(rng.integers(0, 90, (4, 3, 2)).astype(np.int16), oblique(signs, angle))
        if form == "qform":
            image.set_qform(oblique(signs, angle), code=1)
            image.set_sform(None, code=0)
        path = tmp_path / f"image{suffix}"
        nib.save(image, path)
        volume = read_nifti(path, max_voxels=MANY)
        assert np.array_equal(affine_of(volume.grid), nib.load(path).affine)
        mask = rng.integers(0, 4, volume.grid.shape_shw).astype(np.uint8)
        write_label_like(tmp_path / f"mask{suffix}", mask, volume.grid)
        written = nib.load(tmp_path / f"mask{suffix}")
        assert np.array_equal(written.affine, nib.load(path).affine)
        assert written.get_data_dtype() == np.uint8
        if form != "nifti2":  # what every viewer reads
            assert int(written.header["sizeof_hdr"]) == 348
        assert np.array_equal(np.asanyarray(written.dataobj), mask.transpose(2, 1, 0))
        again = read_nifti(tmp_path / f"mask{suffix}", max_voxels=MANY)
        assert again.grid == volume.grid
        assert np.array_equal(again.array_shw, mask)


def test_an_ordinary_mask_declares_both_forms(tmp_path: Path) -> None:
    image = save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.int16), np.diag([1.5, 2.0, 8.0, 1.0]))
    grid = read_nifti(image, max_voxels=MANY).grid
    write_label_like(tmp_path / "m.nii", np.zeros((2, 2, 2), np.uint8), grid)
    header = nib.load(tmp_path / "m.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"


def with_two_sizes(path: Path, *, qform_code: int) -> Path:
    """As ACDC's own files are reported to be: unit voxels by the sform, true ones beside it."""
    true = np.diag([-1.25, -1.25, 10.0, 1.0])
    image = nib.Nifti1Image(np.zeros((3, 4, 2), np.int16), true)
    image.set_qform(true, code=1)
    image.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
    image.header["qform_code"] = qform_code
    path.write_bytes(image.to_bytes())
    header = nib.load(path).header
    assert header["sform_code"] == 1
    assert header.get_zooms() == (1.25, 1.25, 10.0)
    return path


def test_a_sform_that_contradicts_the_voxel_size_is_set_aside_for_the_qform(tmp_path: Path) -> None:
    volume = read_nifti(with_two_sizes(tmp_path / "a.nii", qform_code=1), max_voxels=MANY)
    assert volume.sform_set_aside
    assert volume.grid.spacing_shw_mm == (10.0, 1.25, 1.25)
    write_label_like(tmp_path / "m.nii", np.zeros((2, 4, 3), np.uint8), volume.grid)
    mask = read_nifti(tmp_path / "m.nii", max_voxels=MANY)
    assert mask.grid == volume.grid
    assert not mask.sform_set_aside


def test_two_voxel_sizes_without_a_qform_are_refused_with_both(tmp_path: Path) -> None:
    path = with_two_sizes(tmp_path / "a.nii", qform_code=0)
    with pytest.raises(DataError, match="two voxel sizes") as raised:
        read_nifti(path, max_voxels=MANY)
    assert raised.value.found == "1 x 1 x 1 mm and 1.25 x 1.25 x 10 mm, no qform"


@pytest.mark.parametrize("stored_mm", [5.0, 5.0 / np.cos(0.35), 0.0])
def test_a_tilted_gantry_may_store_either_length_of_its_slices(
    tmp_path: Path, stored_mm: float
) -> None:
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    affine[1, 2] = 5.0 * np.tan(0.35)
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), affine)
    image.set_qform(affine, code=1, strip_shears=True)
    image.set_sform(affine, code=1)
    image.header["pixdim"][3] = stored_mm
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    volume = read_nifti(tmp_path / "a.nii", max_voxels=MANY)
    assert not volume.sform_set_aside
    assert np.allclose(affine_of(volume.grid), affine)


def test_equal_masks_give_equal_bytes(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (4, 5, 6))
    for name in ("a", "b"):
        write_label_like(tmp_path / f"{name}.nii.gz", mask, grid_without_spacing((4, 5, 6)))
    written = (tmp_path / "a.nii.gz").read_bytes()
    assert written == (tmp_path / "b.nii.gz").read_bytes()
    assert written[4:8] == bytes(4)  # no time of writing


def test_a_class_above_255_or_another_shape_is_not_written(tmp_path: Path) -> None:
    for mask in (np.full((1, 2, 2), 256), np.zeros((2, 2, 2), np.uint8)):
        with pytest.raises(DataError):
            write_label_like(tmp_path / "m.nii", mask, grid_without_spacing((1, 2, 2)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype", "expected"),
    [
        (1.0, -1024.0, np.int16, [-1024, -1014]),
        (2.0, 0.0, np.uint8, [0, 20]),
        (0.5, 1.0, np.float32, [1.0, 6.0]),
        (1.0, 0.0, np.int16, [0, 10]),
    ],
)
def test_slope_and_intercept_are_applied_and_whole_ones_keep_integers(
    tmp_path: Path, slope: float, intercept: float, dtype: type, expected: list[float]
) -> None:
    image = nib.Nifti1Image(np.array([0, 10], np.int16).reshape(2, 1, 1), np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    raw[352:356] = np.array([0, 10], "<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    values = read_nifti(tmp_path / "a.nii", max_voxels=MANY).array_shw
    assert values.ravel().tolist() == expected
    assert values.dtype == dtype


def test_big_endian_floats_and_doubles_become_native_float32(tmp_path: Path) -> None:
    for dtype in (">f4", ">f8", "<f8"):
        header = nib.Nifti1Header(endianness=dtype[0])
        array = np.array([0.5, -2.0], dtype).reshape(1, 2, 1)
        image = nib.Nifti1Image(array, np.eye(4), header)
        image.set_data_dtype(dtype)
        nib.save(image, tmp_path / "a.nii")
        values = read_nifti(tmp_path / "a.nii", max_voxels=MANY).array_shw
        assert values.dtype == np.dtype("=f4")
        assert values.ravel().tolist() == [0.5, -2.0]


def test_trailing_axes_of_one_voxel_are_dropped(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.zeros((4, 3, 2, 1, 1), np.uint8), np.eye(4))
    assert read_nifti(path, max_voxels=MANY).array_shw.shape == (2, 3, 4)


def test_texts_of_the_header_reach_no_output(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[field] = b"CANARY^JANE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"CANARY^JANE"))
    nib.save(image, tmp_path / "a.nii")
    assert b"CANARY" in (tmp_path / "a.nii").read_bytes()
    volume = read_nifti(tmp_path / "a.nii", max_voxels=MANY)
    write_label_like(tmp_path / "m.nii.gz", volume.array_shw, volume.grid)
    assert b"CANARY" not in gzip.decompress((tmp_path / "m.nii.gz").read_bytes())
    assert "CANARY" not in volume.grid.model_dump_json()


def test_a_volume_of_exactly_the_limit_is_read_and_one_more_voxel_is_not(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.zeros((4, 3, 2), np.uint8), np.eye(4))
    assert read_nifti(path, max_voxels=24).array_shw.size == 24
    with pytest.raises(DataError, match="more voxels than the limit"):
        read_nifti(path, max_voxels=23)
