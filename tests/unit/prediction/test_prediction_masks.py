"""The folder of the masks: nothing that is not ours is replaced, nothing that is ours forgotten."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from prediction_files import SHAPE_XYZ, make_model, write_scan

from sssflow.contracts.prediction import PredictionSet
from sssflow.errors import DataError, UnavailableError, UsageError
from sssflow.evaluation.config import EvaluateConfig
from sssflow.prediction import masks, stage
from sssflow.storage.contracts import load_contract
from sssflow.storage.lock import locked

CONFIG = EvaluateConfig(device="cpu")


def record_of(out):
    return load_contract(PredictionSet, out / masks.RECORD_FILE)


def names_of(record):
    return [item.name for item in record.scans]


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def test_masks_that_predict_did_not_make_are_never_replaced(model, scans, tmp_path):
    truth = tmp_path / "labelsTs"
    truth.mkdir()
    write_scan(truth / "b.nii.gz", seed=7)
    before = content(truth)
    with pytest.raises(UsageError, match="would be replaced") as caught:
        stage.run(CONFIG, [model], scans, truth)
    assert caught.value.where == str(truth / "b.nii.gz")
    assert content(truth) == before


def test_a_record_that_cannot_be_read_gives_no_leave_to_replace(model, scans, tmp_path):
    out = tmp_path / "out"
    stage.run(CONFIG, [model], scans, out)
    (out / masks.RECORD_FILE).write_text("{torn")
    before = content(out)
    with pytest.raises(UsageError, match="whose they are is not known"):
        stage.run(CONFIG, [model], scans, out)
    assert content(out) == before


def test_a_mask_that_was_corrected_by_hand_is_kept(model, scans, tmp_path):
    out = tmp_path / "out"
    stage.run(CONFIG, [model], scans, out)
    write_scan(out / "a.nii.gz", seed=3)
    before = content(out)
    with pytest.raises(UsageError, match="changed since"):
        stage.run(CONFIG, [model], scans, out)
    assert content(out) == before
    found = stage.run(CONFIG, [model], scans / "b_0000.nii.gz", out)
    assert names_of(found) == ["b_0000.nii.gz"]
    with pytest.raises(UsageError, match="changed since"):
        stage.run(CONFIG, [model], scans / "a.nii", out)
    assert (out / "a.nii.gz").read_bytes() == before["a.nii.gz"]


def test_a_second_call_into_the_folder_is_refused_while_one_writes(model, scans, tmp_path):
    out = tmp_path / "out"
    stage.run(CONFIG, [model], scans / "a.nii", out)
    before = content(out)
    with locked(out / ".lock"), pytest.raises(UnavailableError, match="Another call is writing"):
        stage.run(CONFIG, [model], scans, out)
    assert content(out) == before
    assert names_of(stage.run(CONFIG, [model], scans, out)) == ["a.nii", "b_0000.nii.gz"]


def test_the_record_names_the_masks_of_all_calls(model, scans, tmp_path):
    out = tmp_path / "out"
    stage.run(CONFIG, [model], scans / "b_0000.nii.gz", out)
    found = stage.run(CONFIG, [model], scans / "a.nii", out)
    assert names_of(found) == ["a.nii", "b_0000.nii.gz"]
    assert record_of(out) == found
    assert found == stage.run(CONFIG, [model], scans, tmp_path / "at once")
    (out / "a.nii.gz").unlink()
    assert names_of(stage.run(CONFIG, [model], scans / "b_0000.nii.gz", out)) == ["b_0000.nii.gz"]


def test_a_damaged_mask_of_another_scan_is_made_again_when_that_comes(model, scans, tmp_path):
    out = tmp_path / "out"
    first = stage.run(CONFIG, [model], scans, out)
    (out / "a.nii.gz").write_bytes(b"torn")
    found = stage.run(CONFIG, [model], scans / "b_0000.nii.gz", out)
    assert names_of(found) == ["b_0000.nii.gz"]
    assert stage.run(CONFIG, [model], scans / "a.nii", out) == first


@pytest.mark.parametrize("change", ["model", "settings"])
def test_masks_of_other_models_or_settings_are_not_mixed(model, scans, tmp_path, change):
    out = tmp_path / "out"
    stage.run(CONFIG, [model], scans / "b_0000.nii.gz", out)
    config, other = CONFIG, model
    if change == "model":
        other = make_model(tmp_path / "other", seed=5)
    else:
        config = CONFIG.model_copy(update={"test_time_flips": True})
    before = content(out)
    for place in (scans, scans / "a.nii"):
        with pytest.raises(UsageError, match="folder holds masks") as caught:
            stage.run(config, [other], place, out)
        assert change in caught.value.what
        assert "another output folder, or remove this one" in caught.value.action
    assert content(out) == before
    (out / "b.nii.gz").unlink()
    assert names_of(stage.run(config, [other], scans / "a.nii", out)) == ["a.nii"]


def test_settings_that_change_no_mask_are_no_others(model, scans, tmp_path):
    first = stage.run(CONFIG, [model], scans, tmp_path / "out")
    config = CONFIG.model_copy(update={"batch_size": 1, "allow_seen": True})
    assert stage.run(config, [model], scans, tmp_path / "out") == first


def test_a_scan_that_fails_now_keeps_no_mask_of_before(model, scans, tmp_path):
    out = tmp_path / "out"
    stage.run(CONFIG, [model], scans, out)
    (scans / "a.nii").write_bytes(b"broken")
    with pytest.raises(DataError, match="1 of 2 scans"):
        stage.run(CONFIG, [model], scans, out)
    assert not (out / "a.nii.gz").exists()
    record = record_of(out)
    assert names_of(record) == ["b_0000.nii.gz"]
    assert [item.name for item in record.failed] == ["a.nii"]
    assert record.begun == ()


def test_two_scans_of_one_name_in_two_calls_are_refused(model, scans, tmp_path):
    out = tmp_path / "out"
    stage.run(CONFIG, [model], scans, out)
    write_scan(tmp_path / "b.nii.gz", seed=4)
    before = content(out)
    with pytest.raises(UsageError, match="one mask"):
        stage.run(CONFIG, [model], tmp_path / "b.nii.gz", out)
    assert content(out) == before


def test_a_mask_that_a_kill_left_without_an_entry_is_ours(model, scans, tmp_path, monkeypatch):
    whole = stage.run(CONFIG, [model], scans, tmp_path / "whole")
    out = tmp_path / "out"
    stage.run(CONFIG, [model], scans / "a.nii", out)
    write = stage.write_label_like

    def killed(path, *args):
        write(path, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "write_label_like", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.run(CONFIG, [model], scans, out)
    assert (out / "b.nii.gz").is_file()
    assert record_of(out).begun == ("b.nii.gz",)
    write_scan(scans / "a.nii", seed=8)
    with pytest.raises(KeyboardInterrupt):  # now over a mask that has an entry
        stage.run(CONFIG, [model], scans / "a.nii", out)
    assert record_of(out).begun == ("a.nii.gz", "b.nii.gz")
    monkeypatch.undo()
    found = stage.run(CONFIG, [model], scans, out)
    assert names_of(found) == names_of(whole)
    assert found.begun == ()
    assert np.asarray(nib.load(out / "b.nii.gz").dataobj).shape == SHAPE_XYZ
