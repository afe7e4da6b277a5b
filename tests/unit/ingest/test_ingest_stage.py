"""The whole stage: what is opened, what is written, what is left after a failure."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.errors import DataProblems, UnavailableError, UsageError
from sssflow.ingest import stage
from sssflow.ingest.config import IngestConfig, SplitConfig
from sssflow.storage.contracts import load_contract
from sssflow.volume.packed import read_packed

CONFIG = IngestConfig(name="tiny", split=SplitConfig(labelled=1, validation=1, test=1))


def files_below(folder: Path) -> dict[str, bytes]:
    """Relative path to content of everything below a folder, hidden files included."""
    found = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base) / name
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def unlabelled_masks(root: Path, manifest: DatasetManifest) -> list[Path]:
    patients = {case.patient_id for case in manifest.with_role(Role.UNLABELLED)}
    return [path for p in sorted(patients) for path in (root / p).glob("*_gt.nii.gz")]


def test_the_dataset_holds_what_the_files_hold(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 5)
    seen: list[tuple[int, int, str]] = []
    manifest = stage.run(
        CONFIG,
        root,
        tmp_path / "out",
        progress=lambda done, total, name: seen.append((done, total, name)),
    )
    assert load_contract(DatasetManifest, tmp_path / "out" / "manifest.json") == manifest
    assert manifest.name == "tiny"
    assert seen == [(i + 1, 10, case.case_id) for i, case in enumerate(manifest.cases)]
    for case in manifest.cases:
        path = root / case.patient_id / f"{case.case_id}.nii.gz"
        original = nib.load(path)
        image = read_packed(case.image, base=tmp_path / "out", shape=case.grid.shape_shw)
        assert np.array_equal(image.transpose(2, 1, 0), np.asanyarray(original.dataobj))
        assert np.array_equal(case.grid.affine_ras, original.affine)
    for role in (Role.LABELLED, Role.VALIDATION, Role.TEST):
        for labelled in manifest.labelled(role):
            mask = read_packed(labelled.label, base=tmp_path / "out")
            path = root / labelled.patient_id / f"{labelled.case_id}_gt.nii.gz"
            assert mask.dtype == np.uint8
            assert np.array_equal(mask.transpose(2, 1, 0), np.asanyarray(nib.load(path).dataobj))
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 6
    assert len(list((tmp_path / "out" / "images").iterdir())) == 10


def test_two_runs_in_two_folders_give_equal_bytes(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 4)
    copy = shutil.copytree(root, tmp_path / "elsewhere" / "scans")
    stage.run(CONFIG, root, tmp_path / "one")
    stage.run(CONFIG, copy, tmp_path / "two")
    stage.run(CONFIG, root, tmp_path / "one")
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")


@pytest.mark.parametrize("poison", ["noise", "garbage", "directory"])
def test_poisoned_masks_of_unlabelled_cases_change_nothing(
    tmp_path: Path, makers: Any, poison: str
) -> None:
    root = makers.acdc(tmp_path / "acdc", 5)
    manifest = stage.run(CONFIG, root, tmp_path / "before")
    masks = unlabelled_masks(root, manifest)
    assert len(masks) == 4
    for path in masks:
        path.unlink()
        if poison == "noise":
            makers.nifti(path, makers.image((9, 9, 9)) * np.float32(np.nan))
        elif poison == "garbage":
            path.write_bytes(b"\x00not a scan")
        else:
            path.mkdir()
    stage.run(CONFIG, root, tmp_path / "after")
    assert files_below(tmp_path / "after") == files_below(tmp_path / "before")
    assert stage.check(CONFIG, root).ok


def test_poisoned_masks_inside_hdf5_files_change_nothing_either(
    tmp_path: Path, makers: Any
) -> None:
    import h5py

    root = makers.la(tmp_path / "la", ["A1", "B2", "C3"])
    config = IngestConfig(split=SplitConfig(labelled=1, validation=0))
    stage.run(config, root, tmp_path / "before")
    for scan in ("B2", "C3"):
        with h5py.File(root / "2018LA_Seg_Training Set" / scan / "mri_norm2.h5", "a") as file:
            del file["label"]
            if scan == "C3":
                file["label"] = np.full((2, 2), np.nan)
    stage.run(config, root, tmp_path / "after")
    assert files_below(tmp_path / "after") == files_below(tmp_path / "before")


def test_deleted_masks_of_listed_unlabelled_patients_cause_no_error(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.acdc(tmp_path / "acdc", 5)
    path = tmp_path / "roles.json"
    path.write_text(json.dumps({"labelled": ["patient001"], "validation": ["patient005"]}))
    config = IngestConfig(split=SplitConfig(file=path))
    manifest = stage.run(config, root, tmp_path / "before")
    for mask in unlabelled_masks(root, manifest):
        mask.unlink()
    stage.run(config, root, tmp_path / "after")
    assert files_below(tmp_path / "after") == files_below(tmp_path / "before")


def test_all_problems_of_all_cases_are_told_and_nothing_is_written(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.acdc(tmp_path / "acdc", 5)
    first = root / "patient001" / "patient001_frame01"
    makers.nifti(Path(f"{first}.nii.gz"), np.full((6, 5, 3), np.nan, np.float32))
    makers.nifti(Path(f"{first}_gt.nii.gz"), np.full((6, 5, 3), 7, np.uint8))
    (root / "patient003" / "patient003_frame07.nii.gz").write_bytes(b"<html>")
    with pytest.raises(DataProblems) as caught:
        stage.run(CONFIG, root, tmp_path / "out")
    assert caught.value.exit_code == 65
    assert [(p.what, "patient00" in p.where) for p in caught.value.problems] == [
        ("The image holds NaN or infinity.", True),
        ("The mask holds an unknown class.", True),
        ("The file is not what its name says.", True),
    ]
    assert all(p.action for p in caught.value.problems)
    assert not (tmp_path / "out").exists()
    report = stage.check(CONFIG, root)
    assert [p.what for p in report.problems] == [p.what for p in caught.value.problems]
    assert json.loads(report.model_dump_json())["problems"][0]["action"]


def test_a_check_describes_a_sound_data_set_and_writes_nothing(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 4)
    empty = root / "patient001" / "patient001_frame01_gt.nii.gz"
    makers.nifti(empty, np.zeros((6, 5, 3), np.uint8))
    before = files_below(tmp_path)
    report = stage.check(CONFIG, root)
    assert files_below(tmp_path) == before
    assert report.ok
    assert (report.layout, report.cases, report.patients) == ("acdc", 8, 4)
    assert report.cases_per_role == {"labelled": 2, "unlabelled": 2, "validation": 2, "test": 2}
    assert report.shapes_shw == {"3 x 5 x 6": 8}
    assert report.spacings_shw_mm == {"8 x 1.25 x 1.5": 8}
    assert sum(report.voxels_per_class.values()) == 6 * 90
    assert report.notes == ("patient001_frame01: the mask is all background",)


@pytest.mark.parametrize("change", ["same", "flipped", "turned"])
def test_a_copy_of_an_image_under_another_patient_is_refused_across_roles(
    tmp_path: Path, makers: Any, change: str
) -> None:
    root = makers.acdc(tmp_path / "acdc", 5)
    source = np.asanyarray(nib.load(root / "patient001/patient001_frame01.nii.gz").dataobj)
    copy = {"same": source, "flipped": source[::-1, :, ::-1], "turned": source.swapaxes(0, 1)}
    target = root / "patient003" / "patient003_frame07.nii.gz"
    makers.nifti(target, np.ascontiguousarray(copy[change]))
    report = stage.check(CONFIG, root)
    assert [p.what for p in report.problems] == [
        "The same image is there under different patients."
    ]
    assert report.problems[0].where == "patient001_frame01, patient003_frame07"
    assert "patient001 is labelled, patient003 is unlabelled" in report.problems[0].found
    accepted = CONFIG.model_copy(update={"copies": "note"})
    assert stage.check(accepted, root).ok


def test_copies_within_one_role_are_noted_unless_every_copy_is_refused(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.acdc(tmp_path / "acdc", 5)
    shutil.copy(
        root / "patient002" / "patient002_frame01.nii.gz",
        root / "patient003" / "patient003_frame01.nii.gz",
    )
    report = stage.check(CONFIG, root)
    assert report.ok
    assert report.notes == (
        "patient002_frame01, patient003_frame01: the same image under different patients",
    )
    assert not stage.check(CONFIG.model_copy(update={"copies": "refuse"}), root).ok


def test_ids_that_differ_only_in_case_are_refused(tmp_path: Path, makers: Any) -> None:
    root = makers.nnunet(tmp_path / "n", ["Case", "case", "other"])
    report = stage.check(CONFIG, root)
    assert [p.what for p in report.problems] == ["Two cases have the same id."]


def test_header_texts_reach_no_file_of_the_dataset(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 3)
    for path in sorted(root.rglob("*.nii.gz")):
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[148:160] = b"CANARY^JANE^"
        path.write_bytes(gzip.compress(bytes(raw)))
    stage.run(CONFIG, root, tmp_path / "out")
    written = files_below(tmp_path / "out")
    assert len(written) == 13
    assert not any(b"CANARY" in content for content in written.values())
    assert str(tmp_path).encode() not in written["manifest.json"]


def test_a_failed_run_leaves_the_older_dataset_untouched(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 4)
    stage.run(CONFIG, root, tmp_path / "out")
    before = files_below(tmp_path / "out")
    (root / "patient004" / "patient004_frame07.nii.gz").write_bytes(b"")
    with pytest.raises(DataProblems):
        stage.run(CONFIG, root, tmp_path / "out")
    assert files_below(tmp_path / "out") == before


def test_a_smaller_data_set_leaves_no_file_of_the_older_one(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 5)
    stage.run(CONFIG, root, tmp_path / "out")
    shutil.rmtree(root / "patient003")
    stage.run(CONFIG, root, tmp_path / "out")
    stage.run(CONFIG, root, tmp_path / "fresh")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "fresh")


def test_foreign_files_and_nested_folders_are_never_overwritten(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.acdc(tmp_path / "acdc", 3)
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "mine" / "images" / "holiday.jpg").write_bytes(b"x")
    before = files_below(tmp_path)
    for out in (tmp_path / "mine", root, root / "out", tmp_path):
        with pytest.raises(UsageError):
            stage.run(CONFIG, root, out)
    assert files_below(tmp_path) == before


def test_a_failure_between_two_moves_never_leaves_an_old_manifest_over_new_arrays(
    tmp_path: Path, makers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = makers.acdc(tmp_path / "acdc", 4)
    stage.run(CONFIG, root, tmp_path / "out")
    (root / "patient001" / "patient001_frame01_gt.nii.gz").unlink()
    makers.nifti(root / "patient001" / "patient001_frame01_gt.nii.gz", makers.label((6, 5, 3), 4))
    rename = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if target.name == "labels":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(UnavailableError):
        stage.run(CONFIG, root, tmp_path / "out")
    monkeypatch.undo()
    assert files_below(tmp_path / "out") == {}
    stage.run(CONFIG, root, tmp_path / "out")
    stage.run(CONFIG, root, tmp_path / "fresh")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "fresh")


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from sssflow.ingest import stage
from sssflow.ingest.config import IngestConfig
config = IngestConfig.model_validate_json(sys.argv[4])
def progress(done, total, name):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
stage.run(config, Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


@pytest.mark.slow
def test_a_packing_killed_at_any_file_leaves_no_manifest_and_reruns_to_equal_bytes(
    tmp_path: Path, makers: Any
) -> None:
    root = makers.acdc(tmp_path / "acdc", 3)
    stage.run(CONFIG, root, tmp_path / "calm")
    for moment in (1, 4, 6):
        arguments = [str(root), str(tmp_path / "out"), str(moment), CONFIG.model_dump_json()]
        done = subprocess.run([sys.executable, "-c", KILLED_AT, *arguments], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not (tmp_path / "out" / "manifest.json").exists()
    stage.run(CONFIG, root, tmp_path / "out")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "calm")


# A limit on file size is a real refusal of the kernel, and needs no rights to set up.
NO_SPACE = """
import os, resource, signal, sys
from pathlib import Path
from sssflow.errors import UnavailableError
from sssflow.ingest import stage
from sssflow.ingest.config import IngestConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    stage.run(IngestConfig.model_validate_json(sys.argv[4]), Path(sys.argv[1]), Path(sys.argv[2]))
except UnavailableError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["arrays", "manifest"])
def test_a_disk_that_refuses_gives_exit_69_and_leaves_nothing_of_the_run(
    tmp_path: Path, makers: Any, limit: str
) -> None:
    root = makers.acdc(tmp_path / "acdc", 3)
    stage.run(CONFIG, root, tmp_path / "calm")
    arrays = max(p.stat().st_size for p in (tmp_path / "calm").rglob("*.b2nd"))
    manifest = (tmp_path / "calm" / "manifest.json").stat().st_size
    assert arrays < manifest
    size = arrays - 1 if limit == "arrays" else manifest - 1
    arguments = [str(root), str(tmp_path / "out"), str(size), CONFIG.model_dump_json()]
    done = subprocess.run([sys.executable, "-c", NO_SPACE, *arguments], check=False)
    assert done.returncode == 69
    assert not (tmp_path / "out").exists()
    (tmp_path / "calm" / "manifest.json").chmod(0o444)
    before = files_below(tmp_path / "calm")
    arguments[1] = str(tmp_path / "calm")
    done = subprocess.run([sys.executable, "-c", NO_SPACE, *arguments], check=False)
    assert done.returncode == 69
    assert files_below(tmp_path / "calm") == before


def without(root: Path, makers: Any, value: int, patients: range) -> None:
    """Take a class out of the masks of some patients."""
    for path in [p for i in patients for p in root.glob(f"patient{i:03d}/*_gt.nii.gz")]:
        mask = np.asanyarray(nib.load(path).dataobj).astype(np.uint8)
        makers.nifti(path, np.where((mask == value) | (value == 0), 0, mask).astype(np.uint8))


def test_a_class_that_no_labelled_mask_shows_is_told(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 4)
    without(root, makers, 1, range(1, 2))
    told = ("no labelled case shows RV: no model can learn it from these",)
    assert stage.check(CONFIG, root).notes == told


def test_labelled_masks_that_show_nothing_are_refused(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 4)
    without(root, makers, 0, range(1, 2))
    (problem,) = stage.check(CONFIG, root).problems
    assert problem.what == "The masks of all labelled cases are empty."


@pytest.mark.parametrize(
    ("labelled", "told"),
    [
        ([], ("no patient is labelled: nothing can be trained on these",)),
        (["patient001"], ()),
    ],
)
def test_a_split_without_a_labelled_patient_is_told(
    labelled: list[str], told: tuple[str, ...], tmp_path: Path, makers: Any
) -> None:
    root, path = makers.acdc(tmp_path / "acdc", 3), tmp_path / "roles.json"
    path.write_text(json.dumps({"labelled": labelled, "validation": ["patient003"]}))
    config = IngestConfig(split=SplitConfig(file=path))
    assert stage.check(config, root).notes == told


def test_a_check_counts_the_masks_that_it_did_not_open(tmp_path: Path, makers: Any) -> None:
    root = makers.acdc(tmp_path / "acdc", 4)
    assert stage.check(CONFIG, root).masks_unread == 2
    everything = CONFIG.model_copy(
        update={"split": CONFIG.split.model_copy(update={"labelled": "all"})}
    )
    assert stage.check(everything, root).masks_unread == 0
