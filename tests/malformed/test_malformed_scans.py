"""Damaged, foreign and hostile scans: each refused by name with a remedy, nothing written.

The table follows the files that nibabel or SimpleITK accept although they are broken: cut voxels,
NaN in the affine, no orientation, sizes that the file does not hold, and names that would climb.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from sssflow.contracts.dataset import DatasetManifest
from sssflow.errors import DataError, DataProblems
from sssflow.ingest import stage
from sssflow.ingest.config import IngestConfig, SplitConfig
from sssflow.storage.contracts import load_contract
from sssflow.storage.plain_file import require_plain_file
from sssflow.volume.nifti import read_nifti

CONFIG = IngestConfig(split=SplitConfig(labelled=1, validation=1), max_voxels=1 << 20)
AFFINE = np.diag([1.5, 1.25, 8.0, 1.0])
SHAPE = (7, 6, 5)

Damage = Callable[[bytes], bytes]


def image_bytes(seed: int = 0, affine: np.ndarray = AFFINE, dtype: type = np.int16) -> bytes:
    values = np.random.default_rng(seed).integers(0, 900, SHAPE).astype(dtype)
    return nib.Nifti1Image(values, affine).to_bytes()


def label_bytes(values: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    return nib.Nifti1Image(values, affine).to_bytes()


def cohort(root: Path) -> tuple[Path, Path]:
    """Three nnU-Net cases; returns image and mask of the labelled one, to be damaged."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for number in range(3):
        mask = np.random.default_rng(number).integers(0, 3, SHAPE).astype(np.uint8)
        image = gzip.compress(image_bytes(number))
        (root / "imagesTr" / f"case{number}_0000.nii.gz").write_bytes(image)
        (root / "labelsTr" / f"case{number}.nii.gz").write_bytes(gzip.compress(label_bytes(mask)))
    (root / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1, "b": 2}})
    )
    return root / "imagesTr" / "case0_0000.nii.gz", root / "labelsTr" / "case0.nii.gz"


def put(offset: int, form: str, *values: float) -> Damage:
    """Overwrite header fields at a byte offset."""

    def damage(raw: bytes) -> bytes:
        patched = bytearray(raw)
        struct.pack_into(form, patched, offset, *values)
        return bytes(patched)

    return damage


def with_values(values: np.ndarray, affine: np.ndarray = AFFINE) -> Damage:
    return lambda raw: label_bytes(values, affine)


def one_voxel(value: float, dtype: type = np.float32) -> Damage:
    values = np.ones(SHAPE, dtype)
    values[1, 2, 3] = value
    return with_values(values)


SHEARED = AFFINE.copy()
SHEARED[0, 1] = 0.01
FLIPPED = AFFINE.copy()
FLIPPED[0] = (-1.5, 0.0, 0.0, 9.0)

# What is damaged, how (before compression), and the headline of the refusal.
HEADER_FAULTS: dict[str, tuple[Damage, str]] = {
    "voxels cut at half": (lambda raw: raw[: len(raw) // 2], "does not hold what its header says"),
    "one byte of voxels missing": (lambda raw: raw[:-1], "does not hold what its header says"),
    "header cut": (lambda raw: raw[:200], "not a single-file NIfTI"),
    "nothing in it": (lambda raw: b"", "not a single-file NIfTI"),
    "much too long": (lambda raw: raw + bytes(1 << 17), "does not hold what its header says"),
    "a web page": (lambda raw: b"<html>" * 99, "not a single-file NIfTI"),
    "wrong mark": (put(344, "4s", b"abcd"), "not a single-file NIfTI"),
    "mark of a file pair": (put(344, "4s", b"ni1\0"), "not a single-file NIfTI"),
    "offset of a terabyte": (put(108, "<f", 1e12), "voxel offset is out of range"),
    "negative offset": (put(108, "<f", -352.0), "voxel offset"),
    "offset of NaN": (put(108, "<f", float("nan")), "NIfTI"),
    "32767 cubed": (put(40, "<4h", 3, 32767, 32767, 32767), "more voxels than the limit"),
    "a negative axis": (put(40, "<4h", 3, 7, -6, 5), "three-dimensional"),
    "an axis of no voxels": (put(40, "<4h", 3, 7, 0, 5), "three-dimensional"),
    "two axes": (put(40, "<4h", 2, 7, 30, 1), "three-dimensional"),
    "a time series": (put(40, "<5h", 4, 7, 6, 1, 5), "three-dimensional"),
    "nine axes": (put(40, "<h", 9), "NIfTI"),
    "an orientation code that does not exist": (put(252, "<2h", 0, 9), "no orientation"),
    "unknown data type": (put(70, "<2h", 999, 16), "NIfTI"),
    "complex numbers": (put(70, "<2h", 32, 64), "not plain real numbers"),
    "colours": (put(70, "<2h", 128, 24), "not plain real numbers"),
    "no orientation": (put(252, "<2h", 0, 0), "declares no orientation"),
    "NaN in the affine": (put(280, "<f", float("nan")), "affine is not finite"),
    "a singular affine": (put(312, "<4f", 0, 0, 0, 0), "affine is not invertible"),
    "impossible quaternion": (
        lambda raw: put(256, "<3f", 9.0, 9.0, 9.0)(put(252, "<2h", 1, 0)(raw)),
        "orientation is damaged",
    ),
    "lengths in metres": (put(123, "B", 1 + 8), "not in millimetres"),
    "lengths in micrometres": (put(123, "B", 3), "not in millimetres"),
    "lengths in a unit that does not exist": (put(123, "B", 7), "not in millimetres"),
    "infinite slope": (put(112, "<2f", float("inf"), 0.0), "slope or intercept"),
    "NaN in the voxels": (one_voxel(np.nan), "holds NaN or infinity"),
    "infinity in the voxels": (one_voxel(-np.inf), "holds NaN or infinity"),
    "a double beyond float32": (one_voxel(1e300, np.float64), "holds NaN or infinity"),
}

LABEL_FAULTS: dict[str, tuple[Damage, str]] = {
    "unknown class": (one_voxel(3, np.uint8), "unknown class"),
    "negative class": (one_voxel(-1, np.int16), "unknown class"),
    "class beyond uint8": (one_voxel(256, np.int16), "unknown class"),
    "fractions": (one_voxel(0.5), "values that are no classes"),
    "NaN in the mask": (one_voxel(np.nan), "values that are no classes"),
    "another shape": (with_values(np.zeros((7, 6, 4), np.uint8)), "differ in shape"),
    "axes swapped": (with_values(np.zeros((6, 7, 5), np.uint8)), "differ in shape"),
    "mirrored": (with_values(np.zeros(SHAPE, np.uint8), FLIPPED), "different places"),
    "moved by 2 mm": (
        with_values(np.zeros(SHAPE, np.uint8), AFFINE + np.eye(4, k=3) * 2),
        "different places",
    ),
    "sheared by a hair": (with_values(np.zeros(SHAPE, np.uint8), SHEARED), "different places"),
    "another spacing": (
        with_values(np.zeros(SHAPE, np.uint8), np.diag([1.5, 1.25, 8.1, 1.0])),
        "different places",
    ),
}


def assert_refused(root: Path, out: Path, case_id: str, headline: str) -> None:
    with pytest.raises(DataProblems) as caught:
        stage.run(CONFIG, root, out)
    assert len(caught.value.problems) == 1
    problem = caught.value.problems[0]
    assert headline in problem.what
    assert case_id in problem.where
    assert problem.action
    assert caught.value.exit_code == 65
    assert not out.exists()


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_a_damaged_image_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    image, _ = cohort(tmp_path / "scans")
    damage, headline = HEADER_FAULTS[fault]
    image.write_bytes(gzip.compress(damage(image_bytes())))
    assert_refused(tmp_path / "scans", tmp_path / "out", "case0", headline)


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_a_mask_that_does_not_fit_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    _, label = cohort(tmp_path / "scans")
    damage, headline = LABEL_FAULTS[fault]
    label.write_bytes(gzip.compress(damage(b"")))
    assert_refused(tmp_path / "scans", tmp_path / "out", "case0", headline)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_compressed_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    image, _ = cohort(tmp_path / "scans")
    whole = image.read_bytes()
    image.write_bytes(whole[: int(len(whole) * share)])
    assert_refused(tmp_path / "scans", tmp_path / "out", "case0", "cut or damaged")


def test_a_wrong_checksum_is_refused_although_every_byte_is_there(tmp_path: Path) -> None:
    image, _ = cohort(tmp_path / "scans")
    whole = bytearray(image.read_bytes())
    whole[-8] ^= 1
    image.write_bytes(whole)
    assert_refused(tmp_path / "scans", tmp_path / "out", "case0", "cut or damaged")


def test_a_plain_file_named_gz_is_refused(tmp_path: Path) -> None:
    image, _ = cohort(tmp_path / "scans")
    image.write_bytes(image_bytes())
    assert_refused(tmp_path / "scans", tmp_path / "out", "case0", "not what its name says")


def test_a_folder_in_place_of_a_scan_is_refused(tmp_path: Path) -> None:
    image, _ = cohort(tmp_path / "scans")
    image.unlink()
    image.mkdir()
    assert_refused(tmp_path / "scans", tmp_path / "out", "case0", "cannot be read")


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    image, _ = cohort(tmp_path / "scans")
    image.unlink()
    image.symlink_to(tmp_path / "nowhere")
    assert_refused(tmp_path / "scans", tmp_path / "out", "case0", "cannot be read")


def test_a_device_in_place_of_a_scan_or_a_description_is_refused_unopened(tmp_path: Path) -> None:
    """A named pipe would be waited for without end; a device stands for it here."""
    image, _ = cohort(tmp_path / "scans")
    image.unlink()
    image.symlink_to("/dev/null")
    assert_refused(tmp_path / "scans", tmp_path / "out", "case0", "a pipe, a socket or a device")
    description = tmp_path / "scans" / "dataset.json"
    description.unlink()
    description.symlink_to("/dev/null")
    with pytest.raises(DataError, match="a pipe, a socket or a device"):
        stage.run(CONFIG, tmp_path / "scans", tmp_path / "out")


def test_a_named_pipe_is_told_from_a_file_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="a pipe, a socket or a device"):
        require_plain_file(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(DataError, match="a pipe, a socket or a device"):
        require_plain_file(tmp_path / "link")
    with pytest.raises(DataError, match="a pipe, a socket or a device"):
        load_contract(DatasetManifest, tmp_path / "pipe")
    for harmless in (tmp_path, tmp_path / "missing", Path(__file__), tmp_path / ("a" * 300)):
        require_plain_file(harmless)


def test_a_gzip_bomb_is_refused_with_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    image, _ = cohort(tmp_path / "scans")
    # 1 GiB of zeros in 1 MB, behind a header that declares 210 voxels.
    block = gzip.compress(bytes(1 << 24))
    image.write_bytes(gzip.compress(image_bytes()) + block * 64)
    assert image.stat().st_size < 2 << 20
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="does not hold what its header says"):
            read_nifti(image, max_voxels=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["..hidden", "a b", "a\nb", "ä", "a;rm", "-rf", "‮gnp", "x" * 140, "a\\b", "%2e%2e"]
)
def test_a_hostile_file_name_is_refused_and_shown_harmless(tmp_path: Path, name: str) -> None:
    root = tmp_path / "scans"
    cohort(root)
    (root / "imagesTr" / f"c{name}_0000.nii.gz").write_bytes(gzip.compress(image_bytes(9)))
    mask = np.ones(SHAPE, np.uint8)
    (root / "labelsTr" / f"c{name}.nii.gz").write_bytes(gzip.compress(label_bytes(mask)))
    if name in ("..hidden", "-rf"):  # sound behind a letter: they must stay inside
        manifest = stage.run(CONFIG, root, tmp_path / "out")
        assert f"c{name}" in {case.case_id for case in manifest.cases}
        assert {path.name for path in tmp_path.iterdir()} == {"scans", "out"}
        return
    with pytest.raises(DataProblems, match="cannot be used as an id") as caught:
        stage.run(CONFIG, root, tmp_path / "out")
    assert "\n" not in caught.value.problems[0].where
    assert "\n" not in caught.value.problems[0].found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("entry", ["../../../etc/x_frame01", "/etc/passwd", "x" * 300, ".."])
def test_a_list_that_climbs_opens_nothing_outside(tmp_path: Path, entry: str) -> None:
    root = tmp_path / "scans"
    write_h5_cohort(root)
    (root / "val.list").write_text(entry + "\n")
    report = stage.check(CONFIG, root)
    assert report.problems
    assert all("/etc" not in problem.where for problem in report.problems)


def write_h5_cohort(root: Path) -> Path:
    """Two SSL4MIS volumes of two slices; returns the file to be damaged."""
    (root / "data" / "slices").mkdir(parents=True)
    lines = []
    rng = np.random.default_rng(0)
    for patient in ("patient001", "patient002"):
        for z in (1, 2):
            lines.append(f"{patient}_frame01_slice_{z}")
            with h5py.File(root / "data" / "slices" / f"{lines[-1]}.h5", "w") as file:
                file["image"] = rng.random((40, 30), dtype=np.float32)
                file["label"] = rng.integers(0, 4, (40, 30)).astype(np.uint8)
    (root / "train_slices.list").write_text("\n".join(lines))
    return root / "data" / "slices" / f"{lines[0]}.h5"


def rewritten(key: str, value: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[key]
            if value is not None:
                file[key] = value

    return damage


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: (
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)]) and None
    )


def replaced_by_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


H5_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut at half": (cut(0.5), "damaged, cut or of another format"),
    "a device": (replaced_by_a_device, "a pipe, a socket or a device"),
    "empty": (cut(0.0), "damaged, cut or of another format"),
    "foreign": (lambda path: path.write_bytes(b"<html>" * 99), "damaged, cut or of another"),
    "no image": (rewritten("image", None), "lacks a data set"),
    "no mask": (rewritten("label", None), "lacks a data set"),
    "a volume": (rewritten("image", np.zeros((2, 40, 30), "f4")), "another form"),
    "text": (rewritten("image", np.array([["x"]], "S1")), "real numbers"),
    "NaN": (rewritten("image", np.full((40, 30), np.nan, "f4")), "NaN or infinity"),
    "unknown class": (rewritten("label", np.full((40, 30), 4, "u1")), "unknown class"),
    "smaller slice": (rewritten("image", np.zeros((40, 29), "f4")), "differ in shape or type"),
}


@pytest.mark.parametrize("fault", H5_FAULTS)
def test_a_damaged_hdf5_slice_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    path = write_h5_cohort(tmp_path / "scans")
    damage, headline = H5_FAULTS[fault]
    damage(path)
    config = CONFIG.model_copy(update={"split": SplitConfig(labelled=1, validation=0)})
    with pytest.raises(DataProblems) as caught:
        stage.run(config, tmp_path / "scans", tmp_path / "out")
    assert headline in caught.value.problems[0].what
    assert "patient001_frame01" in caught.value.problems[0].where
    assert not (tmp_path / "out").exists()


def test_the_table_holds_enough_faults() -> None:
    assert len(HEADER_FAULTS) + len(LABEL_FAULTS) + len(H5_FAULTS) >= 45


@pytest.mark.parametrize("seed", range(100))
def test_any_mutated_nifti_is_read_soundly_or_refused_in_our_words(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    raw = bytearray(image_bytes(dtype=np.float32 if seed % 2 else np.int16))
    for _ in range(int(rng.integers(1, 12))):
        raw[int(rng.integers(0, 352 if rng.random() < 0.9 else len(raw)))] = rng.integers(0, 256)
    if seed % 5 == 0:
        raw = raw[: int(rng.integers(0, len(raw)))]
    path = tmp_path / "scan.nii"
    path.write_bytes(raw)
    if seed % 3 == 0:
        path = tmp_path / "scan.nii.gz"
        packed = bytearray(gzip.compress(bytes(raw), mtime=0))
        packed[int(rng.integers(0, len(packed)))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(packed)
    volume, error = None, None
    try:
        volume = read_nifti(path, max_voxels=1 << 16)
    except DataError as caught:
        error = caught
    if volume is None:
        assert error is not None
        assert str(path) in error.where
        return
    assert volume.array_shw.shape == volume.grid.shape_shw
    assert volume.array_shw.dtype.kind in "iuf"
    assert np.isfinite(volume.grid.affine_ras).all()
    assert abs(np.linalg.det(np.array(volume.grid.affine_ras))) > 0
