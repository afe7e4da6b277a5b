"""The train stage end to end on a drawn dataset."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.run import RunRecord
from sssflow.errors import DataError, InterruptedRun, UnavailableError, UsageError
from sssflow.networks.trained import load_model
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.training import stage
from sssflow.training.checkpoint import list_checkpoints
from sssflow.training.loop import Progress
from sssflow.volume.packed import write_packed

METHODS = ("supervised", "mean_teacher", "unimatch_v2", "sss", "cps", "bcp", "dan")


def weights_digest(out: Path) -> str:
    return load_model(out / "model").description.weights.sha256


def masks_for(method, tiny):
    return [tiny.masks] if method == "sss" else []


def stop_after(step: int):
    """A progress callback that sends this process SIGTERM when `step` steps are done."""
    import os
    import signal

    def callback(progress: Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return callback


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_model_record_checkpoint_and_tensorboard(method, tiny, tiny_config, tmp_path):
    record = stage.run(
        tiny_config(method=method), tiny.dataset, tmp_path / "run", masks=masks_for(method, tiny)
    )
    out = tmp_path / "run"
    assert load_contract(RunRecord, out / "run.json") == record
    assert record.method == method
    assert [row["step"] for row in record.history] == [3.0, 6.0]
    assert record.best_step in (3, 6)
    assert "validation" in record.selection
    assert record.metrics["validation_dice"] == max(row["dice"] for row in record.history)
    assert list((out / "tensorboard").glob("events*"))
    assert load_model(out / "model").description.step == record.best_step


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_twice_gives_bit_equal_weights(method, tiny, tiny_config, tmp_path):
    config = tiny_config(method=method)
    for name in ("one", "two"):
        stage.run(config, tiny.dataset, tmp_path / name, masks=masks_for(method, tiny))
    assert weights_digest(tmp_path / "one") == weights_digest(tmp_path / "two")


def test_another_seed_gives_other_weights(tiny, tiny_config, tmp_path):
    for seed in (1, 2):
        stage.run(tiny_config(seed=seed), tiny.dataset, tmp_path / str(seed))
    assert weights_digest(tmp_path / "1") != weights_digest(tmp_path / "2")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_twice_ends_bit_equal_to_one_that_was_not(
    method, tiny, tiny_config, tmp_path
):
    config, masks = tiny_config(method=method), masks_for(method, tiny)
    stage.run(config, tiny.dataset, tmp_path / "whole", masks=masks)
    for step in (2, 5):
        with pytest.raises(InterruptedRun, match=f"after step {step}"):
            stage.run(
                config, tiny.dataset, tmp_path / "cut", masks=masks, progress=stop_after(step)
            )
        assert not (tmp_path / "cut" / "run.json").exists()
    record = stage.run(config, tiny.dataset, tmp_path / "cut", masks=masks)
    whole = load_contract(RunRecord, tmp_path / "whole" / "run.json")
    assert weights_digest(tmp_path / "cut") == weights_digest(tmp_path / "whole")
    assert record.history == whole.history
    assert record.best_step == whole.best_step


def test_a_finished_run_is_not_run_again(tiny, tiny_config, tmp_path):
    first = stage.run(tiny_config(), tiny.dataset, tmp_path)
    steps = []
    assert stage.run(tiny_config(), tiny.dataset, tmp_path, progress=steps.append) == first
    assert steps == []


@pytest.mark.parametrize("gone", ["model", "model/model.json", "model/weights.safetensors"])
def test_a_finished_run_whose_model_is_gone_makes_it_again_from_its_checkpoint(
    gone, tiny, tiny_config, tmp_path, caplog
):
    first = stage.run(tiny_config(), tiny.dataset, tmp_path)
    before = weights_digest(tmp_path)
    path, steps = tmp_path / gone, []
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        again = stage.run(tiny_config(), tiny.dataset, tmp_path, progress=steps.append)
    assert "made again" in caplog.text
    assert weights_digest(tmp_path) == before
    assert (again.history, again.best_step) == (first.history, first.best_step)
    assert steps == []


def curve(out: Path, name: str) -> list[int]:
    """Steps at which TensorBoard shows a value."""
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


def test_curves_of_a_resumed_run_have_every_point_once(tiny, tiny_config, tmp_path):
    with pytest.raises(InterruptedRun):
        stage.run(tiny_config(), tiny.dataset, tmp_path, progress=stop_after(3))
    stage.run(tiny_config(), tiny.dataset, tmp_path)
    assert curve(tmp_path, "validation/dice") == [3, 6]


def test_curves_of_a_run_that_died_before_its_first_checkpoint_do_not_stay(
    tiny, tiny_config, tmp_path
):
    def die(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyError("killed")

    with pytest.raises(KeyError):
        stage.run(tiny_config(), tiny.dataset, tmp_path, progress=die)
    assert curve(tmp_path, "validation/dice") == [3]
    stage.run(tiny_config(), tiny.dataset, tmp_path)
    assert curve(tmp_path, "validation/dice") == [3, 6]


def test_a_finished_run_refuses_other_settings_by_name(tiny, tiny_config, tmp_path):
    stage.run(tiny_config(), tiny.dataset, tmp_path)
    with pytest.raises(UsageError, match=r"seed: 1337 -> 5"):
        stage.run(tiny_config(seed=5), tiny.dataset, tmp_path)


def test_an_interrupted_run_refuses_another_method_and_names_the_key(tiny, tiny_config, tmp_path):
    with pytest.raises(InterruptedRun):
        stage.run(tiny_config(), tiny.dataset, tmp_path, progress=stop_after(2))
    with pytest.raises(UsageError, match=r"method: 'supervised' -> 'mean_teacher'"):
        stage.run(tiny_config(method="mean_teacher"), tiny.dataset, tmp_path)


def test_resume_switched_off_starts_anew(tiny, tiny_config, tmp_path):
    stage.run(tiny_config(), tiny.dataset, tmp_path)
    record = stage.run(tiny_config(seed=5), tiny.dataset, tmp_path, resume=False)
    assert record.seed == 5


def test_resume_switched_off_does_not_take_up_what_cannot_be_deleted(
    tiny, tiny_config, tmp_path, monkeypatch
):
    stage.run(tiny_config(), tiny.dataset, tmp_path)

    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(stage.shutil, "rmtree", refuse)
    with pytest.raises(UnavailableError, match="Permission denied"):
        stage.run(tiny_config(), tiny.dataset, tmp_path, resume=False)


def test_two_runs_into_one_folder_are_refused(tiny, tiny_config, tmp_path):
    refused = []

    def second(progress: Progress) -> None:
        if progress.step == 1:
            with pytest.raises(UnavailableError, match="Another process"):
                stage.run(tiny_config(), tiny.dataset, tmp_path)
            refused.append(True)

    stage.run(tiny_config(), tiny.dataset, tmp_path, progress=second)
    assert refused == [True]


def test_sss_without_masks_is_refused_unless_their_weight_is_zero(tiny, tiny_config, tmp_path):
    with pytest.raises(UsageError, match=r"SAM-2 masks"):
        stage.run(tiny_config(method="sss"), tiny.dataset, tmp_path)
    stage.run(
        tiny_config(method="sss", sss={"mask_weight": 0, "dfe_width": 8}), tiny.dataset, tmp_path
    )


def test_an_average_that_is_not_kept_cannot_be_measured(tiny, tiny_config, tmp_path):
    with pytest.raises(UsageError, match=r"keeps no moving average .*\n  where: train\.evaluate "):
        stage.run(tiny_config(evaluate="ema"), tiny.dataset, tmp_path)
    stage.run(tiny_config(evaluate="ema", ema_evaluation=True), tiny.dataset, tmp_path)


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    tiny, tiny_config, tmp_path, caplog
):
    config = tiny_config(checkpoint_every_steps=2, keep_last=3)
    stage.run(config, tiny.dataset, tmp_path / "whole")
    with pytest.raises(InterruptedRun):
        stage.run(config, tiny.dataset, tmp_path / "cut", progress=stop_after(5))
    newest = list_checkpoints(tmp_path / "cut" / "checkpoints")[-1]
    (newest / "state.pt").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        stage.run(config, tiny.dataset, tmp_path / "cut")
    assert f"{newest.name} is damaged" in caplog.text
    assert weights_digest(tmp_path / "cut") == weights_digest(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_at_once_and_names_step_and_cases(
    tiny, tiny_config, tmp_path
):
    config = tiny_config(optimiser={"kind": "sgd", "learning_rate": 1.0})
    done = []

    def poison(progress: Progress) -> None:
        done.append(progress.step)

    import sssflow.training.methods.supervised as module

    real = module.supervised_loss
    calls = iter(range(100))

    def broken(logits, label):
        return real(logits, label) * (float("nan") if next(calls) == 2 else 1.0)

    module.supervised_loss = broken
    try:
        with pytest.raises(DataError, match=r"step 2, cases a1") as caught:
            stage.run(config, tiny.dataset, tmp_path, progress=poison)
    finally:
        module.supervised_loss = real
    assert done == [1, 2]
    assert caught.value.exit_code == 65
    assert not (tmp_path / "run.json").exists()


def test_a_kill_after_the_last_checkpoint_does_not_write_it_again(
    tiny, tiny_config, tmp_path, monkeypatch
):
    config = tiny_config(keep_last=1)
    stage.run(config, tiny.dataset, tmp_path)
    (tmp_path / "run.json").unlink()  # as after a kill between checkpoint and record
    monkeypatch.setattr("sssflow.training.standing.save_checkpoint", None)
    assert stage.run(config, tiny.dataset, tmp_path).steps == 6


@pytest.mark.parametrize("refusal", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_a_step_that_does_not_fit_into_memory_is_a_fault_of_the_settings(
    refusal, tiny, tiny_config, tmp_path, monkeypatch
):
    def refuse(logits, label):
        raise refusal

    monkeypatch.setattr("sssflow.training.methods.supervised.supervised_loss", refuse)
    with pytest.raises(UsageError, match="does not fit into memory") as caught:
        stage.run(tiny_config(), tiny.dataset, tmp_path)
    assert caught.value.__cause__ is refusal


def test_a_validation_volume_that_does_not_fit_is_named(tiny, tiny_config, tmp_path, monkeypatch):
    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("sssflow.training.validate.predict_labels", refuse)
    with pytest.raises(DataError, match=r"does not fit into memory.*\n  where: c1"):
        stage.run(tiny_config(), tiny.dataset, tmp_path)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_curves_on_a_full_disk_end_the_run_as_unavailable(tiny, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("sssflow.training.tracking.SummaryWriter.add_scalar", full)
    with pytest.raises(UnavailableError, match="cannot be written"):
        stage.run(tiny_config(), tiny.dataset, tmp_path)


def test_curves_that_cannot_be_closed_hide_no_other_ending(
    tiny, tiny_config, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("sssflow.training.tracking.SummaryWriter.close", full)
    with pytest.raises(InterruptedRun):
        stage.run(tiny_config(), tiny.dataset, tmp_path, progress=stop_after(2))
    assert "the last curves are not written" in caplog.text


def test_validation_cases_without_any_class_choose_no_step(
    fresh_tiny, tiny_config, tmp_path, caplog
):
    manifest = load_contract(DatasetManifest, fresh_tiny.dataset)
    empty = np.zeros(fresh_tiny.truth["c1"].shape, np.uint8)
    folder = fresh_tiny.dataset.parent
    label = write_packed(folder / "labels" / "empty.b2nd", empty, base=folder)
    cases = tuple(
        case.model_copy(update={"label": label}) if case.case_id == "c1" else case
        for case in manifest.cases
    )
    save_contract(manifest.model_copy(update={"cases": cases}), fresh_tiny.dataset)
    record = stage.run(tiny_config(), fresh_tiny.dataset, tmp_path / "run")
    assert (record.best_step, record.metrics, record.history) == (6, {}, ())
    assert record.selection.startswith("last step (the dataset has no validation case that shows")
    assert "no validation case shows a class" in caplog.text


def test_the_chosen_weights_are_those_of_the_best_validation(tiny, tiny_config, tmp_path):
    # With a learning rate of zero nothing changes, so the first validation must be kept.
    config = tiny_config(optimiser={"floor": 0.0, "learning_rate": 1e-30, "weight_decay": 0.0})
    record = stage.run(config, tiny.dataset, tmp_path)
    assert record.best_step in (3, 6)
    best = max(record.history, key=lambda row: row["dice"])
    assert record.metrics["validation_dice"] == best["dice"]


def test_training_learns_the_drawn_shapes(tiny, tiny_config, tmp_path):
    config = tiny_config(steps=60, eval_every=30, optimiser={"learning_rate": 0.01})
    record = stage.run(config, tiny.dataset, tmp_path)
    assert record.metrics["validation_dice"] > 0.5
    assert torch.get_num_threads() >= 1
