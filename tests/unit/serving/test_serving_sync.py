"""A server's folder gets the verified files of a repository, or none that counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository, ServedModel
from sssflow.errors import DataError
from sssflow.serving import sync
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, sha256_bytes

NAMES = ("encoder", "predict")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository of two models with two files each."""
    folder, models = tmp_path / "source", []
    for name in NAMES:
        (folder / name / "1").mkdir(parents=True)
        files = folder / name / "config.pbtxt", folder / name / "1" / "model.bin"
        for file in files:
            file.write_bytes(f"{name} {file.name}".encode())
        refs = tuple(reference(file, base=folder) for file in files)
        models.append(
            ServedModel(name=name, version=1, digest="0" * 64, inputs=(), outputs=(), files=refs)
        )
    save_contract(ModelRepository(profile="cpu", models=tuple(models)), folder / REPOSITORY_FILE)
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


@pytest.mark.parametrize("form", ["path", "uri"])
def test_all_files_arrive_with_their_bytes(source: Path, tmp_path: Path, form: str) -> None:
    target = tmp_path / "models"
    sync.run(str(source) if form == "path" else source.as_uri(), target)
    assert _files(target) == _files(source)
    assert len(_files(target)) == 5


def test_only_the_named_models_arrive_and_the_copy_says_so(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "models"
    copied = sync.run(str(source), target, models=["encoder"])
    assert [model.name for model in copied.models] == ["encoder"]
    assert not (target / "predict").exists()
    assert load_contract(ModelRepository, target / REPOSITORY_FILE) == copied


def test_a_changed_file_is_refused_and_the_copy_has_no_manifest(
    source: Path, tmp_path: Path
) -> None:
    (source / "predict" / "1" / "model.bin").write_bytes(b"predict model.bim")
    target = tmp_path / "models"
    with pytest.raises(DataError, match="another content than its manifest says"):
        sync.run(str(source), target)
    assert not (target / REPOSITORY_FILE).exists()
    assert not (target / "predict" / "1" / "model.bin").exists()


def test_a_cut_file_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "encoder" / "config.pbtxt").write_bytes(b"enc")
    with pytest.raises(DataError, match="another size"):
        sync.run(str(source), tmp_path / "models")


def test_a_damaged_copy_is_made_good_and_a_good_one_stays(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "models"
    sync.run(str(source), target)
    good, damaged = target / "encoder/1/model.bin", target / "predict/1/model.bin"
    damaged.write_bytes(b"x")
    before = good.stat().st_ino
    sync.run(str(source), target)
    assert damaged.read_bytes() == b"predict model.bin"
    assert good.stat().st_ino == before


def test_a_higher_version_from_before_is_not_left_for_the_server_to_take(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "models"
    former = target / "encoder" / "2" / "model.bin"
    former.parent.mkdir(parents=True)
    former.write_bytes(b"a model from before")
    sync.run(str(source), target)
    assert _files(target) == _files(source)


def test_a_folder_without_a_manifest_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model repository here"):
        sync.run(str(tmp_path / "empty"), tmp_path / "models")


def test_another_repository_than_the_wanted_one_is_refused(source: Path, tmp_path: Path) -> None:
    wanted = load_contract(ModelRepository, source / REPOSITORY_FILE).digest
    sync.run(str(source), tmp_path / "models", digest=wanted)
    with pytest.raises(DataError, match="Another model repository lies here"):
        sync.run(str(source), tmp_path / "other", digest="1" * 64)
    assert not (tmp_path / "other").exists()


def test_a_model_that_is_missing_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="segmenter") as refusal:
        sync.run(str(source), tmp_path / "models", models=["encoder", "segmenter"])
    assert refusal.value.found == "encoder, predict"


def test_a_manifest_that_climbs_out_of_its_folder_writes_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "models"
    source.mkdir()
    escape = ObjectRef(uri="../escape", size_bytes=1, sha256=sha256_bytes(b"x"))
    (tmp_path / "escape").write_bytes(b"x")
    model = ServedModel(
        name="evil", version=1, digest="0" * 64, inputs=(), outputs=(), files=(escape,)
    )
    save_contract(ModelRepository(profile="cpu", models=(model,)), source / REPOSITORY_FILE)
    with pytest.raises(DataError, match="outside its own folder"):
        sync.run(str(source), target)
    assert not (tmp_path / "deep" / "escape").exists()


def test_a_repository_that_names_a_file_elsewhere_writes_nothing_there(
    source: Path, tmp_path: Path
) -> None:
    elsewhere, path = tmp_path / "elsewhere", source / REPOSITORY_FILE
    content = b"encoder config.pbtxt"
    described = load_contract(ModelRepository, path)
    first = described.models[0]
    ref = ObjectRef(uri=elsewhere.as_uri(), size_bytes=len(content), sha256=sha256_bytes(content))
    models = (first.model_copy(update={"files": (ref,)}), *described.models[1:])
    save_contract(described.model_copy(update={"models": models}), path)
    elsewhere.write_bytes(b"a file of somebody else")
    with pytest.raises(DataError, match="outside"):
        sync.run(str(source), tmp_path / "models")
    assert elsewhere.read_bytes() == b"a file of somebody else"
