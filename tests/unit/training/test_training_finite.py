"""Weights and statistics that are not finite are never kept."""

from __future__ import annotations

import pytest
import torch

from sssflow.errors import DataError
from sssflow.networks.trained import load_model
from sssflow.training import stage
from sssflow.training.checkpoint import list_checkpoints
from sssflow.training.finite import require_finite_weights


class NanGradient(torch.autograd.Function):
    """A value whose gradient is NaN, as oneDNN's and an overflow give it now and then."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@pytest.fixture
def poisoned(monkeypatch):
    """The gradient of the step with this number (from 0) is NaN, its loss finite."""
    import sssflow.training.methods.supervised as module

    real = module.supervised_loss

    def at(step: int) -> None:
        calls = iter(range(100))

        def broken(logits, label):
            loss = real(logits, label)
            return NanGradient.apply(loss) if next(calls) == step else loss

        monkeypatch.setattr(module, "supervised_loss", broken)

    return at


@pytest.mark.parametrize("selection", ["last", "validation"])
def test_weights_that_the_last_gradient_spoilt_are_no_model(
    selection, tiny, tiny_config, tmp_path, poisoned
):
    poisoned(5)
    with pytest.raises(DataError, match=r"Weights are not finite.*\n  where: after 6 steps"):
        stage.run(tiny_config(steps=6, selection=selection), tiny.dataset, tmp_path)
    assert not (tmp_path / "run.json").exists()
    assert not list_checkpoints(tmp_path / "checkpoints")


def test_spoilt_weights_are_no_checkpoint_and_the_run_goes_on_from_the_one_before(
    tiny, tiny_config, tmp_path, poisoned
):
    config = tiny_config(steps=6, checkpoint_every_steps=1, keep_last=1)
    poisoned(2)
    with pytest.raises(DataError, match="after 3 steps"):
        stage.run(config, tiny.dataset, tmp_path / "spoilt")
    kept = list_checkpoints(tmp_path / "spoilt" / "checkpoints")
    assert [path.name for path in kept] == ["step_00000002"]
    poisoned(99)
    stage.run(config, tiny.dataset, tmp_path / "spoilt")
    stage.run(config, tiny.dataset, tmp_path / "whole")
    weights = [
        load_model(tmp_path / name / "model").description.weights for name in ("spoilt", "whole")
    ]
    assert weights[0] == weights[1]


def test_a_loss_of_spoilt_weights_is_not_told_of_the_cases(tiny, tiny_config, tmp_path, poisoned):
    poisoned(2)
    with pytest.raises(DataError, match="Weights are not finite") as caught:
        stage.run(tiny_config(steps=6), tiny.dataset, tmp_path)
    assert caught.value.where == "after 3 steps"


def test_running_statistics_that_are_not_finite_are_not_kept_either():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    require_finite_weights(net, 3)
    net[1].running_var[0] = torch.inf
    with pytest.raises(DataError, match=r"first 1\.running_var"):
        require_finite_weights(net, 3)
