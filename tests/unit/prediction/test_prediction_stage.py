"""New scans in, masks on their grids out: what is kept, what is refused, what goes on."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from prediction_files import AFFINE, NAMES, SHAPE_XYZ, make_model, write_scan

from sssflow.contracts.prediction import PredictionSet
from sssflow.errors import DataError, UsageError
from sssflow.evaluation.config import EvaluateConfig
from sssflow.ingest.config import IngestConfig
from sssflow.prediction import masks, stage
from sssflow.storage.contracts import load_contract, save_contract

CONFIG = EvaluateConfig(device="cpu")


def test_every_scan_gets_a_mask_on_its_own_grid(model, scans, tmp_path):
    found = stage.run(CONFIG, [model], scans, tmp_path / "out")
    assert [item.name for item in found.scans] == ["a.nii", "b_0000.nii.gz"]
    assert [item.labels.uri for item in found.scans] == ["a.nii.gz", "b.nii.gz"]
    assert found.class_names == NAMES
    assert found.warnings == ("Made of nothing.",)
    assert load_contract(PredictionSet, tmp_path / "out" / stage.RECORD_FILE) == found
    for item in found.scans:
        mask = nib.load(tmp_path / "out" / item.labels.uri)
        assert mask.shape == SHAPE_XYZ
        assert np.array_equal(mask.affine, AFFINE)
        labels = np.asarray(mask.dataobj)
        assert item.voxels == {"disc": int((labels == 1).sum()), "ring": int((labels == 2).sum())}
        assert item.volumes_ml["ring"] == pytest.approx(item.voxels["ring"] * 1.5 * 1.25 * 8 / 1000)
    assert sum(sum(item.voxels.values()) for item in found.scans) > 0


def test_volumes_are_those_of_the_voxels_body_and_a_sform_set_aside_is_told(
    model, tmp_path, caplog
):
    tilted = AFFINE.copy()
    tilted[1, 2] = 8.0 * np.tan(0.35)  # planes 8 mm apart, slid over each other
    voxels = np.random.default_rng(0).integers(0, 400, SHAPE_XYZ).astype(np.int16)
    folder = tmp_path / "scans"
    folder.mkdir()
    nib.Nifti1Image(voxels, tilted).to_filename(folder / "tilted.nii.gz")
    twice = nib.Nifti1Image(voxels, AFFINE)
    twice.set_qform(AFFINE, code=1)
    twice.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1)
    twice.to_filename(folder / "twice.nii.gz")
    found = stage.run(CONFIG, [model], folder, tmp_path / "out")
    for item in found.scans:
        expected = {name: count * 1.5 * 1.25 * 8 / 1000 for name, count in item.voxels.items()}
        assert item.volumes_ml == pytest.approx(expected)
        assert sum(item.voxels.values()) > 0
    assert "twice.nii.gz: its sform" in caplog.text
    assert "tilted.nii.gz: its sform" not in caplog.text


def test_a_single_file_will_do_and_the_mask_is_the_networks(model, tmp_path):
    voxels = write_scan(tmp_path / "one.nii.gz")
    stage.run(CONFIG, [model], tmp_path / "one.nii.gz", tmp_path / "out")
    mask = np.asarray(nib.load(tmp_path / "out" / "one.nii.gz").dataobj)
    from sssflow.networks.trained import load_model

    net = load_model(model).net
    image = voxels.transpose(2, 1, 0).astype(np.float32)
    image = (image - image.min()) / (image.max() - image.min())
    with torch.no_grad():
        small = torch.nn.functional.interpolate(
            torch.tensor(image[:, None]), (16, 16), mode="bilinear"
        )
        logits = torch.nn.functional.interpolate(net(small), image.shape[1:], mode="bilinear")
    agree = (logits.argmax(1).numpy().transpose(2, 1, 0) == mask).mean()
    assert agree > 0.99


def test_two_models_are_averaged_and_must_know_the_same_classes(model, scans, tmp_path):
    other = make_model(tmp_path / "other", seed=5)
    both, one, two = (
        stage.run(CONFIG, models, scans, tmp_path / f"out{i}")
        for i, models in enumerate(([model, other], [model], [other]))
    )
    assert len(both.model_digests) == 2
    digests = {tuple(item.labels.sha256 for item in found.scans) for found in (both, one, two)}
    assert len(digests) == 3
    stranger = make_model(tmp_path / "stranger", names=("background", "x", "y"))
    with pytest.raises(UsageError, match="different classes"):
        stage.run(CONFIG, [model, stranger], scans, tmp_path / "refused")


def test_masks_that_are_there_are_kept_and_all_else_is_made_again(
    model, scans, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    first = stage.run(CONFIG, [model], scans, out)
    made = []
    real = stage.predict_volume
    monkeypatch.setattr(stage, "predict_volume", lambda *a: made.append(1) or real(*a))
    assert stage.run(CONFIG, [model], scans, out) == first
    assert made == []
    (out / "a.nii.gz").write_bytes(b"torn")
    assert stage.run(CONFIG, [model], scans, out) == first
    assert len(made) == 1
    write_scan(scans / "b_0000.nii.gz", seed=9)
    assert stage.run(CONFIG, [model], scans, out) != first
    assert len(made) == 2


def test_a_kill_between_two_scans_forgets_no_mask(model, scans, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = stage.run(CONFIG, [model], scans, out)
    saved = []

    def killed(record, path):
        saved.append(save_contract(record, path))
        raise KeyboardInterrupt

    monkeypatch.setattr(masks, "save_contract", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.run(CONFIG, [model], scans, out)
    assert len(saved) == 1
    assert load_contract(PredictionSet, out / stage.RECORD_FILE) == first


def test_a_broken_scan_is_told_at_the_end_and_stops_no_other(model, scans, tmp_path):
    (scans / "aa.nii.gz").write_bytes(b"\x1f\x8b broken")
    holes = np.full(SHAPE_XYZ, np.nan, np.float32)
    nib.Nifti1Image(holes, AFFINE).to_filename(scans / "ab.nii.gz")
    with pytest.raises(DataError, match="2 of 4 scans"):
        stage.run(CONFIG, [model], scans, tmp_path / "out")
    found = load_contract(PredictionSet, tmp_path / "out" / stage.RECORD_FILE)
    assert [item.name for item in found.failed] == ["aa.nii.gz", "ab.nii.gz"]
    assert "NaN" in found.failed[1].reason
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]


def why_the_first_failed(model, scans, out):
    """The reason on record, after the second scan was segmented all the same."""
    with pytest.raises(DataError, match="1 of 2 scans could not be segmented"):
        stage.run(CONFIG, [model], scans, out)
    found = load_contract(PredictionSet, out / stage.RECORD_FILE)
    assert [item.name for item in found.scans] == ["b_0000.nii.gz"]
    return found.failed[0].reason


def test_a_scan_that_may_not_be_read_stops_no_other(model, scans, tmp_path, monkeypatch):
    real = stage.sha256_file

    def closed(path):
        if path.name == "a.nii":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(stage, "sha256_file", closed)
    assert "Permission denied" in why_the_first_failed(model, scans, tmp_path / "out")


def test_scans_may_be_as_large_as_those_that_are_packed():
    assert IngestConfig().max_voxels == stage.MAX_VOXELS


def test_what_cannot_be_meant_is_refused(model, scans, tmp_path):
    with pytest.raises(UsageError, match="among the scans"):
        stage.run(CONFIG, [model], scans, scans)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no scan"):
        stage.run(CONFIG, [model], empty, tmp_path / "out")
    with pytest.raises(UsageError, match="At least one model"):
        stage.run(CONFIG, [], scans, tmp_path / "out")
    shutil.copy(scans / "a.nii", scans / "a_0000.nii")
    with pytest.raises(UsageError, match="one mask"):
        stage.run(CONFIG, [model], scans, tmp_path / "out")
    (scans / "a_0000.nii").rename(scans / "a_0001.nii")
    with pytest.raises(UsageError, match="more than one channel"):
        stage.run(CONFIG, [model], scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "refusal",
    [
        MemoryError("Unable to allocate 7.1 PiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_a_scan_too_large_for_the_memory_stops_no_other(
    refusal, model, scans, tmp_path, monkeypatch
):
    predict = stage.predict_volume
    calls = []

    def refuse_the_first(image, *args):
        calls.append(image)
        if len(calls) == 1:
            raise refusal
        return predict(image, *args)

    monkeypatch.setattr(stage, "predict_volume", refuse_the_first)
    assert "does not fit into memory" in why_the_first_failed(model, scans, tmp_path / "out")


def test_other_errors_of_torch_pass_as_they_are(model, scans, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(stage, "predict_volume", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        stage.run(CONFIG, [model], scans, tmp_path / "out")
