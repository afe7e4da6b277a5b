"""The infer stage: what it writes, what it takes over after an interruption, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sssflow.contracts.dataset import DatasetManifest, Modality
from sssflow.contracts.masks import MaskSet
from sssflow.contracts.prompts import PromptSet
from sssflow.errors import DataError, UsageError
from sssflow.sam import stage
from sssflow.sam.config import SamConfig
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.volume.packed import read_packed

CONFIG = SamConfig(input_size=64)


def test_the_stage_writes_probabilities_on_the_case_grid_and_the_contract(small_dataset, tmp_path):
    dataset, prompts = small_dataset(2)
    made = stage.run(CONFIG, dataset, prompts, tmp_path / "out")
    assert load_contract(MaskSet, tmp_path / "out" / "masks.json") == made
    assert [c.case_id for c in made.cases] == ["case0", "case1"]
    assert made.backend == "torch"
    masks = read_packed(made.cases[0].probability_kshw, base=tmp_path / "out", shape=(2, 7, 48, 56))
    assert masks.dtype == np.uint8
    assert masks[0, 3, 22, 30] > 128
    assert not masks[1].any()
    assert made.cases[0].objects[0].prompted[3]


def test_two_runs_give_equal_bytes(small_dataset, tmp_path):
    dataset, prompts = small_dataset(1)
    for name in ("one", "two"):
        stage.run(CONFIG, dataset, prompts, tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def _watch(monkeypatch) -> list[str]:
    made: list[str] = []
    real = stage._segment_case

    def spy(model, config, manifest, dataset, prompts, out, coarse):
        made.append(prompts.case_id)
        return real(model, config, manifest, dataset, prompts, out, coarse)

    monkeypatch.setattr(stage, "_segment_case", spy)
    return made


def test_finished_cases_of_an_interrupted_run_are_taken_over(small_dataset, tmp_path, monkeypatch):
    dataset, prompts = small_dataset(2)
    out = tmp_path / "out"
    whole = stage.run(CONFIG, dataset, prompts, out)
    # As after a stop within the second case: no contract, no record of that case.
    (out / "masks.json").unlink()
    (out / "masks" / "case1.json").unlink()
    made = _watch(monkeypatch)
    assert stage.run(CONFIG, dataset, prompts, out) == whole
    assert made == ["case1"]


def test_a_harmed_mask_or_other_settings_are_made_again(small_dataset, tmp_path, monkeypatch):
    dataset, prompts = small_dataset(2)
    out = tmp_path / "out"
    whole = stage.run(CONFIG, dataset, prompts, out)
    masks = out / "masks" / "case0.b2nd"
    masks.write_bytes(masks.read_bytes()[:-1] + b"?")
    made = _watch(monkeypatch)
    assert stage.run(CONFIG, dataset, prompts, out) == whole
    assert made == ["case0"]
    made.clear()
    stage.run(CONFIG.model_copy(update={"roi_margin": 0.5}), dataset, prompts, out)
    assert made == ["case0", "case1"]


def test_masks_are_made_again_where_a_corrected_modality_gives_other_grey_values(
    small_dataset, tmp_path, monkeypatch
):
    dataset, prompts = small_dataset(1)
    stage.run(CONFIG, dataset, prompts, tmp_path / "out")
    manifest = load_contract(DatasetManifest, dataset)
    case = manifest.cases[0].model_copy(update={"modality": Modality.CT})
    corrected = manifest.model_copy(update={"cases": (case,)})
    save_contract(corrected, dataset)
    same = load_contract(PromptSet, prompts)
    save_contract(same.model_copy(update={"dataset_digest": corrected.digest}), prompts)
    made = _watch(monkeypatch)
    stage.run(CONFIG, dataset, prompts, tmp_path / "out")
    assert made == ["case0"]


def test_prompts_of_another_dataset_are_refused(small_dataset, tmp_path):
    dataset, prompts = small_dataset(1)
    text = dataset.read_text().replace('"balls"', '"other"')
    dataset.write_text(text)
    with pytest.raises(DataError, match="another dataset"):
        stage.run(CONFIG, dataset, prompts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_is_refused_and_no_contract_is_left(small_dataset, tmp_path):
    dataset, prompts = small_dataset(1)
    image = dataset.parent / "images" / "case0.b2nd"
    image.write_bytes(image.read_bytes()[:-4])
    with pytest.raises(DataError, match="another size"):
        stage.run(CONFIG, dataset, prompts, tmp_path / "out")
    assert not (tmp_path / "out" / "masks.json").exists()


@pytest.mark.parametrize("backend", ["triton"])
def test_backends_of_later_versions_are_refused_by_name(backend, tmp_path: Path):
    with pytest.raises(UsageError, match=backend):
        stage.load_promptable(SamConfig(backend=backend))


def test_an_official_size_without_weights_is_refused():
    with pytest.raises(UsageError, match="needs a checkpoint"):
        stage.load_promptable(SamConfig(size="tiny", input_size=64))


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="no such device"):
        stage.load_promptable(SamConfig(device="quantum"))


def test_an_input_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        SamConfig(input_size=100)


def test_a_class_without_any_mask_is_warned_of(small_dataset, tmp_path, caplog):
    dataset, prompts = small_dataset(1)
    stage.run(CONFIG, dataset, prompts, tmp_path / "out")
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warned == ["nothing: the masks of these 1 case(s) hold none of it"]
