"""SSL4MIS's ACDC and LA folders: both forms, lists, rebuilt volumes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sssflow.contracts.dataset import Role
from sssflow.errors import DataProblems
from sssflow.ingest import stage
from sssflow.ingest.config import IngestConfig, SplitConfig
from sssflow.ingest.layouts import find_layout
from sssflow.ingest.layouts.base import LayoutOptions, ListName, SourceDataset
from sssflow.volume.packed import read_packed

TRAIN = {"patient003_frame01": 12, "patient003_frame02": 2, "patient001_frame01": 3}
CONFIG = IngestConfig(split=SplitConfig(labelled=1))


def discovered(root: Path) -> SourceDataset:
    return find_layout("auto", root).discover(root, LayoutOptions())


def test_slices_become_the_volume_in_the_order_of_their_numbers(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.ssl4mis(tmp_path / "acdc", TRAIN)
    manifest = stage.run(CONFIG, root, tmp_path / "out")
    case = manifest.select(["patient003_frame01"])[0]
    packed = read_packed(case.image, base=tmp_path / "out")
    assert packed.shape == case.grid.shape_shw == (12, 6, 5)
    assert packed.dtype == np.float32
    for z in range(1, 13):
        with h5py.File(root / "data" / "slices" / f"patient003_frame01_slice_{z}.h5") as file:
            assert np.array_equal(packed[z - 1], file["image"][...])
    assert not case.grid.spacing_known


def test_first_patients_are_those_of_the_list_not_of_the_alphabet(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.ssl4mis(tmp_path / "acdc", TRAIN, val=["patient002_frame01"])
    manifest = stage.run(CONFIG, root, tmp_path / "out")
    assert [c.case_id for c in manifest.with_role(Role.LABELLED)] == [
        "patient003_frame01",
        "patient003_frame02",
    ]
    assert [c.phase for c in manifest.with_role(Role.LABELLED)] == ["ED", "ES"]
    assert [c.case_id for c in manifest.with_role(Role.UNLABELLED)] == ["patient001_frame01"]
    assert [c.case_id for c in manifest.with_role(Role.VALIDATION)] == ["patient002_frame01"]


def test_both_folder_forms_and_both_list_forms_give_the_same_bytes(
    tmp_path: Path, makers: Any
) -> None:
    val, test = ["patient002_frame01"], ["patient009_frame02"]
    first = makers.ssl4mis(tmp_path / "a", TRAIN, val, test)
    second = tmp_path / "b"
    (second / "data").mkdir(parents=True)
    for path in [*first.glob("data/slices/*.h5"), *first.glob("data/*.h5")]:
        shutil.copy(path, second / "data")
    for name in ("val", "test", "train"):
        shutil.copy(first / f"{name}.list", second)
    lines = (first / "train_slices.list").read_text().split()
    (second / "train_slices.list").write_text("\n".join(f"data/slices/{x}.h5" for x in lines))
    for root in (first, second):
        stage.run(CONFIG, root, tmp_path / f"out_{root.name}")
    manifests = [(tmp_path / f"out_{name}" / "manifest.json").read_bytes() for name in "ab"]
    assert manifests[0] == manifests[1]
    assert b"patient009_frame02" in manifests[0]
    assert discovered(first).notes == discovered(second).notes == ()


def test_slice_numbers_may_start_at_zero_as_in_the_published_script(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.ssl4mis(tmp_path / "acdc", {"patient001_frame01": 2, "patient002_frame01": 2})
    for name in ("patient001_frame01", "patient002_frame01"):
        for z in (1, 2):
            path = root / "data" / "slices" / f"{name}_slice_{z}.h5"
            path.rename(path.with_name(f"{name}_slice_{z - 1}.h5"))
    text = (root / "train_slices.list").read_text()
    (root / "train_slices.list").write_text(text.replace("_1\n", "_0\n").replace("_2\n", "_1\n"))
    assert discovered(root).problems == ()


def test_every_fault_of_names_and_lists_is_told_in_one_run(tmp_path: Path, makers: Any) -> None:
    root = makers.ssl4mis(tmp_path / "acdc", TRAIN, val=["patient002_frame01"])
    (root / "data" / "slices" / "patient003_frame01_slice_5.h5").unlink()
    (root / "data" / "patient002_frame01.h5").unlink()
    makers.h5(root / "data" / "slices" / "patient001_frame01_slice_4.h5", (6, 5), 4)
    makers.h5(root / "data" / "patient003_frame02_slice_1.h5", (6, 5), 4)
    with (root / "train.list").open("a") as file:
        file.write("patient077_frame01\n../../etc/passwd\npatient001_frame01\n")
    with pytest.raises(DataProblems) as caught:
        stage.run(CONFIG, root, tmp_path / "out")
    text = str(caught.value)
    for fact in (
        "missing [5]",
        "A listed slice is missing",
        "patient002_frame01.h5",
        "'patient001_frame01_slice_4'",
        "A slice is there twice",
        "'patient077_frame01'",
        "'passwd'",
        "names an entry twice",
    ):
        assert fact in text
    assert not (tmp_path / "out").exists()


def test_slices_of_different_shape_are_refused_by_name(tmp_path: Path, makers: Any) -> None:
    root = makers.ssl4mis(tmp_path / "acdc", TRAIN)
    bad = root / "data" / "slices" / "patient003_frame01_slice_7.h5"
    bad.unlink()
    makers.h5(bad, (6, 6), 4)
    with pytest.raises(DataProblems, match=r"patient003_frame01_slice_7\.h5") as caught:
        stage.run(CONFIG, root, tmp_path / "out")
    assert "(6, 5) float32" in str(caught.value)


def test_volumes_that_no_list_names_are_left_out_with_a_note(tmp_path: Path, makers: Any) -> None:
    root = makers.ssl4mis(tmp_path / "acdc", TRAIN)
    makers.h5(root / "data" / "patient050_frame01.h5", (3, 6, 5), 4)
    found = discovered(root)
    assert found.notes == ("1 volumes are in no list and left out",)
    assert len(found.cases) == 3


def test_a_patient_in_two_lists_is_refused(tmp_path: Path, makers: Any) -> None:
    root = makers.ssl4mis(tmp_path / "acdc", TRAIN, val=["patient001_frame02"])
    report = stage.check(CONFIG, root)
    assert [p.what for p in report.problems] == ["A patient is in two lists of the data set."]


def test_left_atrium_scans_are_turned_to_slices_first(tmp_path: Path, makers: Any) -> None:
    root = makers.la(tmp_path / "la", ["ZZZ", "AAA", "MMM", "BBB"])
    config = IngestConfig(split=SplitConfig(labelled=2, validation=1))
    manifest = stage.run(config, root, tmp_path / "out")
    assert manifest.source_layout == "la"
    roles = {case.case_id: case.role.value for case in manifest.cases}
    assert roles == {
        "ZZZ": "labelled",
        "AAA": "labelled",
        "MMM": "unlabelled",
        "BBB": "validation",
    }
    case = manifest.select(["ZZZ"])[0]
    with h5py.File(root / "2018LA_Seg_Training Set" / "ZZZ" / "mri_norm2.h5") as file:
        source = file["image"][...]
    packed = read_packed(case.image, base=tmp_path / "out")
    assert packed.shape == (4, 5, 6)
    assert np.array_equal(packed.transpose(2, 1, 0), source)


def test_a_listed_scan_of_the_left_atrium_must_be_there(tmp_path: Path, makers: Any) -> None:
    root = makers.la(tmp_path / "la", ["AAA", "BBB"])
    (root / "train.list").write_text("AAA\nCCC/mri_norm2.h5\n")
    report = stage.check(IngestConfig(), root)
    assert [p.what for p in report.problems] == ["A listed scan is missing."]
    assert report.notes == ("1 scans are in no list and left out",)
    assert find_layout("la", root).discover(root, LayoutOptions()).list_names == {ListName.TRAIN}
