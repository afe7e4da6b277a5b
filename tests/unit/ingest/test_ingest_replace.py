"""A dataset that lies in the output folder: made again, refused, or replaced with a warning."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from sssflow.cli.main import run
from sssflow.errors import UsageError
from sssflow.ingest import stage
from sssflow.ingest.config import IngestConfig, SplitConfig, StoreConfig
from sssflow.ingest.replace import refuse_other

SPLIT = SplitConfig(labelled=1, validation=1, test=1)
CONFIG = IngestConfig(name="tiny", split=SPLIT)


@pytest.fixture
def root(tmp_path: Path, makers: Any) -> Path:
    folder: Path = makers.acdc(tmp_path / "acdc", 5)
    return folder


@pytest.fixture
def packed(tmp_path: Path, root: Path) -> Path:
    stage.run(CONFIG, root, tmp_path / "out")
    return tmp_path / "out"


def split(**values: object) -> dict[str, object]:
    return {"split": SPLIT.model_copy(update=values)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other"}, "name: tiny there, other now"),
        ({"store": StoreConfig(kind="uint8")}, "ingest.store.kind: lossless there, uint8 now"),
        (split(labelled=2), "labelled patients: 1 there, 2 now (patient002 now alone)"),
        (split(order="random", seed=1), "patients"),
        (split(labelled=0.2), ""),
    ],
)
def test_other_settings_are_refused_with_the_difference(
    root: Path, packed: Path, change: dict[str, object], words: str
) -> None:
    config = CONFIG.model_copy(update=change)
    if not words:  # another way to say the same
        refuse_other(config, root, packed)
        return
    with pytest.raises(UsageError, match="would be replaced") as caught:
        refuse_other(config, root, packed)
    assert words in caught.value.found
    assert caught.value.action.startswith("Choose another folder, or remove this one")


def test_other_cases_are_refused(root: Path, packed: Path) -> None:
    shutil.rmtree(root / "patient003")
    with pytest.raises(UsageError) as caught:
        refuse_other(CONFIG, root, packed)
    assert "cases: 10 there, 8 now (patient003_frame01 there alone)" in caught.value.found


def test_the_same_cases_and_an_empty_folder_are_no_reason(
    root: Path, packed: Path, tmp_path: Path
) -> None:
    refuse_other(CONFIG, root, packed)
    refuse_other(CONFIG, root, tmp_path / "new")
    (packed / "manifest.json").unlink()  # as a kill leaves it
    refuse_other(CONFIG.model_copy(update=split(labelled=2)), root, packed)


def test_faults_of_the_source_are_left_to_the_run(root: Path, packed: Path) -> None:
    (root / "patient002" / "patient002_frame01_gt.nii.gz").unlink()
    refuse_other(CONFIG, root, packed)


def test_a_manifest_of_another_kind_is_not_replaced(root: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(UsageError, match=r"manifest\.json that would be replaced"):
        refuse_other(CONFIG, root, tmp_path)


def test_another_content_of_the_same_cases_replaces_with_a_warning(
    root: Path, packed: Path, makers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    former = stage.run(CONFIG, root, packed)
    assert "replaces" not in caplog.text
    mask = root / "patient001" / "patient001_frame01_gt.nii.gz"
    mask.unlink()
    makers.nifti(mask, makers.label((6, 5, 3), 4))
    refuse_other(CONFIG, root, packed)
    with caplog.at_level(logging.WARNING):
        now = stage.run(CONFIG, root, packed)
    words = f"the dataset {now.digest[:12]} replaces the dataset {former.digest[:12]}"
    assert words in caplog.text


def test_the_command_packs_again_and_refuses_other_settings(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pack(labelled: int, *more: str) -> int:
        words = ["data", "pack", str(root), str(tmp_path / "out"), *more]
        return run([*words, "--set", f"ingest.split.labelled={labelled}"])

    assert pack(1) == 0
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    assert pack(1) == 0
    for dry in ([], ["--dry-run"]):
        assert pack(2, *dry) == 64
        assert "labelled patients: 1 there, 2 now" in capsys.readouterr().err
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
