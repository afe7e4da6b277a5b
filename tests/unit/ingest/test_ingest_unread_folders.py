"""Folders with scans that a layout does not read: told, for their names may be slips."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sssflow.errors import DataError
from sssflow.ingest.layouts import LAYOUTS
from sssflow.ingest.layouts.base import LayoutOptions, SourceDataset

HEADS = ("ID_0000000a_ID_00000000a1", "ID_0000000b_ID_00000000b1")
LEFT_OUT = "image(s) and is not part of the layout: left out"


def discovered(layout: str, root: Path) -> SourceDataset:
    found = LAYOUTS[layout].discover(root, LayoutOptions())
    assert found.problems == ()
    return found


def nnunet(makers: Any, root: Path) -> Path:
    makers.nnunet(root, ["a"], ["b"])
    return Path((root / "imagesUn").rename(root / "imagesUl"))


def acdc(makers: Any, root: Path) -> Path:
    makers.acdc(root, 1, "training")
    makers.acdc(root, 1, "Testing", 2)
    return root / "Testing"


def acdc_patient(makers: Any, root: Path) -> Path:
    makers.acdc(root, 1, "training")
    scan = root / "training" / "patient02b" / "patient02b_4d.nii.gz"
    makers.nifti(scan, makers.image((6, 5, 3)))
    return scan.parent


def la(makers: Any, root: Path) -> Path:
    makers.la(root, ["AAA"])
    makers.h5(root / "2018LA_Seg_Testing Set" / "BBB" / "mri_norm2.h5", (6, 5, 4), 2)
    return root / "2018LA_Seg_Testing Set"


def ssl4mis(makers: Any, root: Path) -> Path:
    makers.ssl4mis(root, {"patient001_frame01": 2})
    makers.h5(root / "data" / "slice" / "patient002_frame01_slice_1.h5", (6, 5), 4)
    return root / "data" / "slice"


def bhsd(makers: Any, root: Path) -> Path:
    makers.bhsd(root, HEADS[:1], HEADS[1:])
    found = root / "unlabelled_2000" / "nobled"
    makers.nifti(found / f"{HEADS[1]}.nii.gz", makers.head())
    return found


def bhsd_above(makers: Any, root: Path) -> Path:
    makers.bhsd(root, HEADS[:1])
    makers.nifti(root / "unlabelled" / "any_bleed" / f"{HEADS[1]}.nii.gz", makers.head())
    return root / "unlabelled"


CASES = {
    nnunet: ("nnunet", f"imagesUl holds 1 {LEFT_OUT}; did you mean imagesUn?"),
    acdc: ("acdc", f"Testing holds 4 {LEFT_OUT}; did you mean testing?"),
    acdc_patient: ("acdc", f"patient02b holds 1 {LEFT_OUT}"),
    la: ("la", f"2018LA_Seg_Testing Set holds 1 {LEFT_OUT}; did you mean 2018LA_Seg_Training Set?"),
    ssl4mis: ("ssl4mis", f"slice holds 1 {LEFT_OUT}; did you mean slices?"),
    bhsd: ("bhsd", f"nobled holds 1 {LEFT_OUT}; did you mean nobleed?"),
    bhsd_above: ("bhsd", f"unlabelled holds 1 {LEFT_OUT}"),
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_folder_of_scans_that_no_layout_reads_is_told(
    tmp_path: Path, makers: Any, make: Any
) -> None:
    layout, told = CASES[make]
    make(makers, tmp_path / "root")
    assert discovered(layout, tmp_path / "root").notes == (told,)


def test_scans_whose_endings_are_in_capitals_count_too(tmp_path: Path, makers: Any) -> None:
    (scan,) = nnunet(makers, tmp_path / "root").iterdir()
    scan.rename(scan.with_name("b_0000.NII.GZ"))
    assert discovered("nnunet", tmp_path / "root").notes == (CASES[nnunet][1],)


def test_what_may_not_be_read_is_refused_only_where_cases_could_lie(
    tmp_path: Path, makers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = [nnunet(makers, tmp_path / "nnunet"), acdc_patient(makers, tmp_path / "acdc")]
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path not in closed and allowed(path, mode))
    assert discovered("nnunet", tmp_path / "nnunet").notes == ()
    with pytest.raises(DataError, match="A folder cannot be read"):
        discovered("acdc", tmp_path / "acdc")


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_what_a_disk_has_at_its_root_for_itself_is_not_opened(
    tmp_path: Path, makers: Any, make: Any
) -> None:
    layout, _ = CASES[make]
    folder = make(makers, tmp_path / "root")
    cases = discovered(layout, tmp_path / "root").cases
    folder.rename(tmp_path / "root" / "lost+found")
    found = discovered(layout, tmp_path / "root")
    assert (found.cases, found.notes) == (cases, ())
