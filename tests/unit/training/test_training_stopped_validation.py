"""A stop that comes while the validation volumes are predicted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Role
from sssflow.errors import InterruptedRun
from sssflow.networks.predict import predict_labels
from sssflow.networks.trained import load_model
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.training import stage

PREDICTS = "sssflow.training.validate.predict_labels"


@pytest.fixture
def two_to_validate(fresh_tiny) -> Path:
    """The tiny dataset with one of its two labelled cases for validation."""
    manifest = load_contract(DatasetManifest, fresh_tiny.dataset)
    cases = list(manifest.cases)
    at = next(i for i, case in enumerate(cases) if case.role is Role.LABELLED)
    told = {name: getattr(cases[at], name) for name in type(cases[at]).model_fields}
    cases[at] = LabelledCase(**told | {"role": Role.VALIDATION})
    changed = manifest.model_copy(update={"cases": tuple(cases)})
    return save_contract(changed, fresh_tiny.dataset)


def stop_at(call: int, calls: list[int]):
    """Prediction that sends this process SIGTERM in its `call`th call, counted in `calls`."""

    def predict(*given):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict_labels(*given)

    return predict


@pytest.mark.parametrize(("step", "call"), [(3, 1), (6, 3)])
def test_it_is_answered_before_the_next_volume_and_the_next_call_validates_first(
    step, call, two_to_validate, tiny_config, tmp_path, monkeypatch
):
    whole = stage.run(tiny_config(), two_to_validate, tmp_path / "whole")
    assert [row["step"] for row in whole.history] == [3.0, 6.0]
    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(PREDICTS, stop_at(call, calls))
        with pytest.raises(InterruptedRun, match=f"after step {step}"):
            stage.run(tiny_config(), two_to_validate, tmp_path / "cut")
    assert len(calls) == call, "the second volume of this validation was not begun"
    record = stage.run(tiny_config(), two_to_validate, tmp_path / "cut")
    assert (record.history, record.best_step) == (whole.history, whole.best_step)
    both = [load_model(tmp_path / name / "model").description for name in ("whole", "cut")]
    assert both[0].weights.sha256 == both[1].weights.sha256
    events = EventAccumulator(str(tmp_path / "cut" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/dice")] == [3, 6]


def test_a_stop_in_the_validation_that_was_left_undone_loses_nothing_either(
    two_to_validate, tiny_config, tmp_path, monkeypatch
):
    whole = stage.run(tiny_config(), two_to_validate, tmp_path / "whole")
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(PREDICTS, stop_at(1, []))
            with pytest.raises(InterruptedRun, match="after step 3"):
                stage.run(tiny_config(), two_to_validate, tmp_path / "cut")
    record = stage.run(tiny_config(), two_to_validate, tmp_path / "cut")
    assert (record.history, record.best_step) == (whole.history, whole.best_step)
