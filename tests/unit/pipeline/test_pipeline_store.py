"""The store: equal inputs, equal folder; pointers that notice a change."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sssflow.contracts.bundle import ModelBundle
from sssflow.contracts.dataset import DatasetManifest
from sssflow.errors import DataError, UsageError
from sssflow.pipeline.store import (
    Store,
    follow_pointer,
    program_digest,
    source_fingerprint,
    write_pointer,
)
from sssflow.storage.contracts import save_contract

PROGRAM = "a" * 64


def test_equal_inputs_give_the_same_folder_in_any_order(tmp_path: Path) -> None:
    store = Store(str(tmp_path), program=PROGRAM)
    first = store.folder("train", {"config": "1", "dataset": "2"})
    assert first == store.folder("train", {"dataset": "2", "config": "1"})
    assert first.parent == tmp_path / "train"


@pytest.mark.parametrize(
    ("stage", "inputs", "program"),
    [
        ("train", {"config": "1", "dataset": "3"}, PROGRAM),
        ("train", {"config": "1"}, PROGRAM),
        ("evaluate", {"config": "1", "dataset": "2"}, PROGRAM),
        ("train", {"config": "1", "dataset": "2"}, "b" * 64),
    ],
)
def test_another_input_stage_or_program_gives_another_folder(
    tmp_path: Path, stage: str, inputs: dict[str, str], program: str
) -> None:
    one = Store(str(tmp_path), program=PROGRAM).folder("train", {"config": "1", "dataset": "2"})
    assert one.name != Store(str(tmp_path), program=program).folder(stage, inputs).name


def test_a_file_address_and_a_path_are_the_same_store(tmp_path: Path) -> None:
    assert Store(tmp_path.as_uri(), program=PROGRAM).root == tmp_path


@pytest.mark.parametrize("uri", ["", "ftp://somewhere/store"])
def test_a_store_that_cannot_be_reached_is_refused(uri: str) -> None:
    with pytest.raises(UsageError):
        Store(uri, program=PROGRAM)


def test_a_pointer_leads_to_its_contract(tmp_path: Path, manifest: DatasetManifest) -> None:
    path = save_contract(manifest, tmp_path / "a b" / "manifest.json")
    pointer = write_pointer(manifest, path)
    assert "\n" not in pointer
    assert follow_pointer(DatasetManifest, pointer) == (manifest, path)


def test_the_digest_of_a_pointer_is_that_of_the_contract(tmp_path, manifest) -> None:
    pointer = json.loads(write_pointer(manifest, tmp_path / "m.json"))
    assert pointer["content_digest"] == manifest.digest


def test_a_contract_that_changed_after_the_pointer_is_refused(tmp_path, manifest) -> None:
    path = save_contract(manifest, tmp_path / "manifest.json")
    pointer = write_pointer(manifest, path)
    save_contract(manifest.model_copy(update={"name": "other"}), path)
    with pytest.raises(DataError, match="has changed"):
        follow_pointer(DatasetManifest, pointer)


def test_a_pointer_to_another_kind_is_refused(tmp_path, manifest) -> None:
    path = save_contract(manifest, tmp_path / "manifest.json")
    with pytest.raises(DataError, match="another kind"):
        follow_pointer(ModelBundle, write_pointer(manifest, path))


def test_the_fingerprint_of_scans_sees_names_sizes_and_times(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    (scans / "p1").mkdir(parents=True)
    scan = scans / "p1" / "image.nii"
    scan.write_bytes(b"12")
    os.utime(scan, ns=(1, 1))
    seen = {source_fingerprint(str(scans))}
    os.utime(scan, ns=(2, 2))
    seen.add(source_fingerprint(str(scans)))
    scan.write_bytes(b"123")
    os.utime(scan, ns=(2, 2))
    seen.add(source_fingerprint(str(scans)))
    scan.rename(scans / "p1" / "other.nii")
    seen.add(source_fingerprint(str(scans)))
    assert len(seen) == 4
    assert source_fingerprint(str(scans)) in seen


def test_the_fingerprint_sees_scans_behind_linked_folders(tmp_path: Path) -> None:
    """Ingest reads them: two sources that differ there alone must not share a result."""
    found = set()
    for name in ("one", "two"):
        (tmp_path / f"disk-{name}" / "deep").mkdir(parents=True)
        (tmp_path / f"disk-{name}" / "deep" / f"{name}.nii").write_bytes(b"12")
        (tmp_path / name).mkdir()
        (tmp_path / name / "imagesTr").symlink_to(tmp_path / f"disk-{name}")
        (tmp_path / name / "loop").symlink_to(tmp_path)
        found.add(source_fingerprint(str(tmp_path / name)))
    assert len(found) == 2


def test_scans_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        source_fingerprint(str(tmp_path / "none"))


def test_the_program_has_one_digest() -> None:
    assert program_digest() == program_digest()
    assert len(program_digest()) == 64
