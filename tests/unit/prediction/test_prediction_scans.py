"""Which files of a folder are scans, and what is said where none are."""

from __future__ import annotations

import logging
import os

import pytest
from prediction_files import write_scan

from sssflow.errors import DataError, UsageError
from sssflow.evaluation.config import EvaluateConfig
from sssflow.prediction import stage
from sssflow.prediction.scans import find_scans

CONFIG = EvaluateConfig(device="cpu")


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def refusal(place):
    with pytest.raises(DataError, match="no scan to segment") as caught:
        find_scans(place)
    return caught.value


def test_folders_that_hold_the_scans_are_named(tmp_path):
    touch(tmp_path, "dataset.json", ".hidden/a.nii", "other/a.txt")
    touch(tmp_path, *(f"{kind}{group}/a.nii.gz" for kind in ("labels", "images") for group in "TU"))
    touch(tmp_path, "imagesTs/a_0000.nii.gz")
    told = refusal(tmp_path)
    assert told.found == "NIfTI files in imagesTs/, imagesT/, imagesU/, labelsT/, labelsU/"
    assert told.action == "Name one of these folders."
    for i in range(9):
        touch(tmp_path, f"patient{i}/a.nii.gz")
    assert "patient4/ and 6 others" in refusal(tmp_path).found


def test_endings_are_read_in_letters_of_any_case(model, tmp_path):
    (tmp_path / "scans").mkdir()
    write_scan(tmp_path / "scans" / "a_0000.nii.gz")
    (tmp_path / "scans" / "a_0000.nii.gz").rename(tmp_path / "scans" / "A_0000.NII.GZ")
    write_scan(tmp_path / "scans" / "b.nii")
    (tmp_path / "scans" / "b.nii").rename(tmp_path / "scans" / "B.Nii")
    assert sorted(find_scans(tmp_path / "scans").files) == ["A", "B"]
    found = stage.run(CONFIG, [model], tmp_path / "scans", tmp_path / "out")
    assert [item.labels.uri for item in found.scans] == ["A.nii.gz", "B.nii.gz"]
    write_scan(tmp_path / "scans" / "A.nii.gz")
    with pytest.raises(UsageError, match="Two scans would have one mask"):
        find_scans(tmp_path / "scans")


def test_hidden_files_of_a_folder_are_no_scans(tmp_path):
    touch(tmp_path, "a.nii.gz", "._a.nii.gz", ".b.nii")
    assert sorted(find_scans(tmp_path).files) == ["a"]
    assert sorted(find_scans(tmp_path / ".b.nii").files) == [".b"]


def test_a_name_that_is_not_utf_8_is_refused_before_any_scan_is_segmented(tmp_path):
    name = os.fsdecode(b"M\xfcller.nii.gz")
    touch(tmp_path, f"{name[:-7]}/a.nii.gz", name)
    assert sorted(find_scans(tmp_path / name[:-7]).files) == ["a"]
    with pytest.raises(DataError, match="not UTF-8"):
        find_scans(tmp_path)


@pytest.mark.parametrize("name", ["a.h5", "A1/mri_norm2.h5"])
def test_hdf5_files_are_said_to_be_for_training(tmp_path, name):
    touch(tmp_path, name)
    assert refusal(tmp_path).action.startswith(".h5 is read for training only")
    if name == "a.h5":
        assert refusal(tmp_path / name).action.startswith(".h5 is read for training only")


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113619", "s/1.dcm", "s/1.DCM"])
def test_dicom_files_are_told_by_their_suffix_or_their_magic(tmp_path, name):
    touch(tmp_path, name)
    if not name.lower().endswith("dcm"):
        assert "DICOM" not in refusal(tmp_path).found
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    assert refusal(tmp_path).found == "DICOM files"
    assert "Convert every series" in refusal(tmp_path).action


def test_where_nothing_is_known_the_last_words_name_other_formats(tmp_path):
    touch(tmp_path, "a.txt")
    for place in (tmp_path, tmp_path / "a.txt", tmp_path / "missing"):
        told = refusal(place)
        assert told.found == "nothing of that kind"
        assert told.action.startswith("Name the folder that holds the files")


def test_masks_beside_their_scans_are_left_out_with_a_warning(model, tmp_path, caplog):
    place = tmp_path / "patient001"
    place.mkdir()
    for name in ("f1.nii.gz", "f1_gt.nii.gz", "f2_0000.nii", "f2_gt.nii.gz", "alone_gt.nii.gz"):
        write_scan(place / name)
    with caplog.at_level(logging.WARNING):
        found = stage.run(CONFIG, [model], place, tmp_path / "out")
    assert [item.name for item in found.scans] == ["alone_gt.nii.gz", "f1.nii.gz", "f2_0000.nii"]
    assert "2 files are left out as masks, not scans: f1_gt.nii.gz, f2_gt.nii.gz" in caplog.text
    assert list(find_scans(place / "f1_gt.nii.gz").files) == ["f1_gt"]
