"""ACDC, BHSD and nnU-Net folders, and telling the layouts apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sssflow.contracts.dataset import Modality, Role
from sssflow.errors import DataError, DataProblems, UsageError
from sssflow.ingest import stage
from sssflow.ingest.config import IngestConfig, SplitConfig
from sssflow.ingest.layouts import LAYOUTS, find_layout
from sssflow.ingest.layouts.base import LayoutOptions
from sssflow.ingest.layouts.bhsd import to_hounsfield
from sssflow.volume.packed import read_packed

CONFIG = IngestConfig(split=SplitConfig(labelled=1, validation=1))
HEADS = ["ID_0000000a_ID_00000000a1", "ID_0000000b_ID_00000000b1", "ID_0000000b_ID_00000000b2"]


def test_acdc_names_phases_by_info_cfg_and_ignores_the_time_series(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.acdc(tmp_path / "acdc", 3)
    (root / "patient001" / "patient001_4d.nii.gz").write_bytes(b"never opened")
    manifest = stage.run(CONFIG, root, tmp_path / "out")
    assert [(c.case_id, c.phase) for c in manifest.cases[:2]] == [
        ("patient001_frame01", "ED"),
        ("patient001_frame07", "ES"),
    ]
    case = manifest.cases[0]
    assert case.grid.spacing_shw_mm == (8.0, 1.25, 1.5)
    assert case.modality == Modality.MR
    assert read_packed(case.image, base=tmp_path / "out").dtype == np.int16
    assert manifest.class_names == ("background", "RV", "MYO", "LV")


def test_acdc_testing_folder_gives_the_test_role(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 3, "training")
    makers.acdc(root, 2, "testing", first=101)
    manifest = stage.run(CONFIG, root, tmp_path / "out")
    assert {c.patient_id for c in manifest.with_role(Role.TEST)} == {"patient101", "patient102"}


def test_acdc_faults_are_told_together(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 5)
    (root / "patient001" / "Info.cfg").unlink()
    (root / "patient002" / "Info.cfg").write_text("Group: DCM\n")
    (root / "patient003" / "patient003_frame07.nii.gz").unlink()
    frame = root / "patient004" / "patient004_frame01.nii.gz"
    frame.rename(frame.with_name("patient005_frame01.nii.gz"))
    report = stage.check(CONFIG, root)
    assert [p.what for p in report.problems] == [
        "Info.cfg is missing.",
        "Info.cfg does not name the ED and ES frames.",
        "A patient folder lacks an image.",
        "A frame has a name that does not fit its folder.",
        "A patient folder lacks an image.",
    ]
    assert all(p.action for p in report.problems)


def test_a_patient_without_masks_is_unlabelled_and_not_counted(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 4)
    for path in (root / "patient001").glob("*_gt.nii.gz"):
        path.unlink()
    manifest = stage.run(CONFIG, root, tmp_path / "out")
    assert {c.patient_id for c in manifest.with_role(Role.LABELLED)} == {"patient002"}
    assert "patient001" in {c.patient_id for c in manifest.with_role(Role.UNLABELLED)}


def test_a_labelled_patient_with_one_missing_mask_is_refused(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 3)
    (root / "patient001" / "patient001_frame07_gt.nii.gz").unlink()
    with pytest.raises(DataProblems, match="needs a mask for its role") as caught:
        stage.run(CONFIG, root, tmp_path / "out")
    assert caught.value.problems[0].where == "patient001_frame07"


def test_bhsd_keeps_both_studies_of_a_patient_in_one_role(tmp_path: Path, makers: Any) -> None:
    root = makers.bhsd(
        tmp_path / "bhsd",
        [*HEADS, "ID_0000000c_ID_00000000c1"],
        ["ID_0000000a_ID_00000000a9", "ID_0000000e_ID_00000000e1"],
    )
    config = IngestConfig(split=SplitConfig(labelled=1, validation=0, test=1))
    manifest = stage.run(config, root, tmp_path / "out")
    roles = {case.case_id: case.role.value for case in manifest.cases}
    assert roles == {
        HEADS[0]: "labelled",
        HEADS[1]: "unlabelled",
        HEADS[2]: "unlabelled",
        "ID_0000000c_ID_00000000c1": "test",
        "ID_0000000e_ID_00000000e1": "unlabelled",
    }
    # The unlabelled study of a labelled patient could have neither role.
    assert stage.check(config, root).notes[0].startswith("1 scans without masks are left out")
    assert {case.modality for case in manifest.cases} == {Modality.CT}


def test_bhsd_official_lists_decide_the_test_patients(tmp_path: Path, makers: Any) -> None:
    root = makers.bhsd(tmp_path / "bhsd", [*HEADS, "ID_0000000c_ID_00000000c1"])
    lists = {
        "training": [{"image": f"./imagesTr/{HEADS[1]}.nii.gz"}, f"{HEADS[2]}.nii.gz"],
        "test": [f"./imagesTs/{HEADS[0]}.nii.gz", "ID_0000000c_ID_00000000c1.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(lists))
    config = IngestConfig(split=SplitConfig(labelled=1, validation=0))
    manifest = stage.run(config, root, tmp_path / "out")
    assert {c.patient_id for c in manifest.with_role(Role.TEST)} == {"ID_0000000a", "ID_0000000c"}
    assert {c.case_id for c in manifest.with_role(Role.LABELLED)} == set(HEADS[1:])


def test_bhsd_pairs_and_names_are_checked(tmp_path: Path, makers: Any) -> None:
    root = makers.bhsd(tmp_path / "bhsd", [*HEADS, "scan7"])
    (root / "label_192" / "ground truths" / f"{HEADS[0]}.nii.gz").unlink()
    (root / "dataset.json").write_text('{"test": [1]}')
    report = stage.check(CONFIG, root)
    assert [p.what for p in report.problems] == [
        "dataset.json cannot be used.",
        "A scan and its mask are not both there.",
        "A scan has a name that names no patient.",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "acdc/patient001/patient001_frame01.nii",
        "acdc/patient001/patient001_frame1.nii.gz",
        "acdc/patient001/patient001_frame07_gt.nii",
        f"bhsd/label_192/images/{HEADS[0]}.nii",
        f"bhsd/label_192/ground truths/{HEADS[0]}.nii",
    ],
)
def test_two_files_for_one_scan_are_refused_and_neither_is_chosen(
    tmp_path: Path, makers: Any, name: str
) -> None:
    makers.acdc(tmp_path / "acdc", 3)
    makers.bhsd(tmp_path / "bhsd", [*HEADS, "ID_0000000c_ID_00000000c1"])
    root = tmp_path / name.split("/")[0]
    assert stage.check(CONFIG, root).ok
    makers.nifti(tmp_path / name, makers.head())
    (problem,) = stage.check(CONFIG, root).problems
    assert problem.what == "Two files stand for the same scan or mask."
    assert Path(name).name in problem.where + problem.found


def test_a_scan_in_both_official_lists_of_bhsd_is_refused(tmp_path: Path, makers: Any) -> None:
    root = makers.bhsd(tmp_path / "bhsd", HEADS)
    lists = {"training": [f"{name}.nii.gz" for name in HEADS], "test": [f"{HEADS[0]}.nii.gz"]}
    (root / "dataset.json").write_text(json.dumps(lists))
    (problem,) = stage.check(CONFIG, root).problems
    assert (problem.what, problem.where) == (
        "dataset.json has a scan in both of its lists.",
        HEADS[0],
    )


def test_ct_units_are_told_by_air_and_brain_or_refused() -> None:
    hounsfield = np.array([-1000] * 5 + [30] * 5, np.int16)
    assert to_hounsfield(hounsfield, "auto", "x") is hounsfield
    stored = (hounsfield + 1024).clip(0).astype(np.uint16)
    assert to_hounsfield(stored, "auto", "x").tolist() == [-1000] * 5 + [30] * 5
    assert to_hounsfield(stored.astype(np.float32), "auto", "x").dtype == np.float32
    for unclear in (hounsfield.clip(0, 80), stored + 500):
        with pytest.raises(DataError, match="units of a CT scan"):
            to_hounsfield(unclear, "auto", "x")
    assert to_hounsfield(hounsfield.clip(0, 80), "hounsfield", "x").max() == 30
    assert to_hounsfield(hounsfield.clip(0, 80), "offset1024", "x").min() == -1024


def test_nnunet_reads_classes_unlabelled_and_test_folders(tmp_path: Path, makers: Any) -> None:
    root = makers.nnunet(tmp_path / "n", ["p1_a", "p1_b", "p2_a", "p3_a"], ["p4_a"])
    makers.nifti(root / "imagesTs" / "p5_a_0000.nii.gz", makers.image((6, 5, 3)))
    config = IngestConfig(
        patient_pattern=r"(?P<patient>p\d+)_", split=SplitConfig(labelled=1, validation=1)
    )
    manifest = stage.run(config, root, tmp_path / "out")
    roles = {case.case_id: (case.patient_id, case.role.value) for case in manifest.cases}
    assert roles == {
        "p1_a": ("p1", "labelled"),
        "p1_b": ("p1", "labelled"),
        "p2_a": ("p2", "unlabelled"),
        "p3_a": ("p3", "validation"),
        "p4_a": ("p4", "unlabelled"),
    }
    assert manifest.class_names == ("background", "liver", "tumour")
    assert manifest.cases[0].modality == Modality.CT
    assert stage.check(config, root).notes == ("imagesTs is left out: there is no labelsTs",)
    makers.nifti(root / "labelsTs" / "p5_a.nii.gz", makers.label((6, 5, 3), 3))
    manifest = stage.run(config, root, tmp_path / "out2")
    assert [c.case_id for c in manifest.with_role(Role.TEST)] == ["p5_a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": {"0": "T1", "1": "T2"}}, "exactly one channel"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "no regions"),
        ({"labels": {"background": 0, "a": 2}}, "without a gap"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, "ignore"),
        ({"labels": []}, "an object such as"),
        ({"labels": {str(k): f"class {k}" for k in range(257)}}, "at most 256 classes"),
        ({"labels": {"background": 0, "RV": 1, "RV ": 2}}, "tells it from others"),
        ({"labels": {"background": 0, "RV": 1, " ": 2}}, "tells it from others"),
        ({"labels": {"0": "none", "1": "RV", "2": "RV"}}, "tells it from others"),
        ({"file_ending": ".png"}, ".nii.gz or .nii"),
    ],
)
def test_nnunet_descriptions_that_are_not_supported_are_refused(
    tmp_path: Path, makers: Any, change: dict[str, Any], message: str
) -> None:
    root = makers.nnunet(tmp_path / "n", ["a", "b"])
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    report = stage.check(CONFIG, root)
    assert message in report.problems[0].expected


def test_nnunet_second_channels_pairs_and_patterns_are_checked(tmp_path: Path, makers: Any) -> None:
    root = makers.nnunet(tmp_path / "n", ["p1", "p2", "x3"])
    makers.nifti(root / "imagesTr" / "p1_0001.nii.gz", makers.image((6, 5, 3)))
    (root / "labelsTr" / "p2.nii.gz").unlink()
    report = stage.check(IngestConfig(patient_pattern=r"p\d"), root)
    assert [p.what for p in report.problems] == [
        "An image is not the only channel of its case.",
        "A scan and its mask are not both there.",
        "A case does not fit patient_pattern.",
    ]
    with pytest.raises(UsageError, match="regular expression"):
        stage.check(IngestConfig(patient_pattern="("), root)


def test_scans_that_nnunet_folders_hide_by_a_slip_are_told(tmp_path: Path, makers: Any) -> None:
    root = makers.nnunet(tmp_path / "n", ["a", "b", "c"], ["d"])
    (root / "imagesUn").rename(root / "imagesUl")
    makers.nifti(root / "imagesTr" / "e_0000.nii", makers.image((6, 5, 3)))
    makers.nifti(root / "imagesTr" / "f_0000.nii.gz", makers.image((6, 5, 3)))
    (root / "imagesTr" / "f_0000.nii.gz").rename(root / "imagesTr" / "f_0000.NII.GZ")
    (root / "fold_docs").mkdir()
    (root / "fold_docs" / "read.me").write_text("no scan")
    path = root / "dataset.json"
    path.write_text(path.read_text().replace("file_ending", "file_endng"))
    assert stage.check(CONFIG, root).notes == (
        "imagesUl holds 1 image(s) and is not part of the layout: left out; did you mean imagesUn?",
        "imagesTr: 2 image(s) do not end in .nii.gz: left out",
        "dataset.json has no file_ending: .nii.gz is taken; it has 'file_endng', which is not read",
    )


def test_an_nnunet_image_without_its_channel_is_told_once_and_how_to_rename_it(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.nnunet(tmp_path / "n", ["a", "b", "HRT_007"])
    (root / "imagesTr" / "HRT_007_0000.nii.gz").rename(root / "imagesTr" / "HRT_007.nii.gz")
    (problem,) = stage.check(CONFIG, root).problems
    assert problem.what == "The name of an image lacks the number of its channel."
    assert problem.action.startswith("Rename it to HRT_007_0000.nii.gz")


def test_an_nnunet_folder_without_dataset_json_is_told_what_to_write(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.nnunet(tmp_path / "n", ["a", "b"])
    (root / "dataset.json").unlink()
    (problem,) = stage.check(CONFIG, root).problems
    assert "no dataset.json" in problem.what
    example = json.loads(problem.expected.removeprefix("an object such as "))
    (root / "dataset.json").write_text(json.dumps(example))
    assert find_layout("auto", root).discover(root, LayoutOptions()).class_names == (
        "background",
        "heart",
    )


@pytest.mark.parametrize(
    ("scale", "told"),
    [(1.0, ()), (1e-3, ("3 case(s), such as a with 0.008 x 0.00125 x 0.0015 mm",))],
)
def test_voxels_of_an_impossible_size_are_noted(
    tmp_path: Path, makers: Any, scale: float, told: tuple[str, ...]
) -> None:
    root = tmp_path / "n"
    makers.nnunet(root, ["a", "b", "c"])
    affine = np.diag([1.5 * scale, 1.25 * scale, 8.0 * scale, 1.0])
    for path in sorted(root.glob("*/*.nii.gz")):
        values = makers.label((6, 5, 3), 3) if "labels" in str(path) else makers.image((6, 5, 3))
        makers.nifti(path, values, affine)
    notes = stage.check(CONFIG, root).notes
    assert tuple(note.split(", have")[0] for note in notes) == told


def test_version_one_labels_of_nnunet_are_read(tmp_path: Path, makers: Any) -> None:
    root = makers.nnunet(tmp_path / "n", ["a", "b"])
    text = '{"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "x", "2": "y"}}'
    (root / "dataset.json").write_text(text)
    found = find_layout("auto", root).discover(root, LayoutOptions())
    assert found.class_names == ("background", "x", "y")
    assert {case.modality for case in found.cases} == {Modality.MR}


def test_auto_finds_the_one_layout_that_fits(tmp_path: Path, makers: Any) -> None:
    roots = {
        "ssl4mis": makers.ssl4mis(tmp_path / "a", {"patient001_frame01": 2}),
        "acdc": makers.acdc(tmp_path / "b", 1),
        "la": makers.la(tmp_path / "c", ["AAA"]),
        "bhsd": makers.bhsd(tmp_path / "d", HEADS),
        "nnunet": makers.nnunet(tmp_path / "e", ["a"]),
    }
    assert set(roots) == set(LAYOUTS)
    for name, root in roots.items():
        assert find_layout("auto", root).name == name


def test_a_folder_that_fits_no_or_two_layouts_is_told_every_tree(
    tmp_path: Path, makers: Any
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    both = makers.acdc(makers.nnunet(tmp_path / "both", ["a"]), 1)
    for root, found in ((tmp_path / "other", "none of them"), (both, "acdc, nnunet")):
        with pytest.raises(DataError, match="exactly one known layout") as caught:
            find_layout("auto", root)
        assert caught.value.found == found
        assert "--set ingest.layout=NAME" in caught.value.action
        assert all(
            f"[{name}]\n{layout.tree}" in str(caught.value) for name, layout in LAYOUTS.items()
        )


def test_an_empty_or_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        find_layout("auto", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        find_layout("acdc", tmp_path / "missing")
