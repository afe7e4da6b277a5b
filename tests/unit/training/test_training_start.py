"""A training may start from another one's weights, and from no others."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sssflow.errors import UsageError
from sssflow.training import stage


def _weights(run):
    return load_file(run / "model" / "weights.safetensors")


def test_training_starts_from_the_given_model(tiny, tiny_config, tmp_path) -> None:
    first = tmp_path / "first"
    stage.run(tiny_config(steps=8), tiny.dataset, first)
    still = tiny_config(steps=1, optimiser={"learning_rate": 1e-12, "weight_decay": 0.0})
    fresh = stage.run(still, tiny.dataset, tmp_path / "fresh")
    record = stage.run(still, tiny.dataset, tmp_path / "on", start=first / "model")
    learned = {n: v for n, v in _weights(first).items() if n.endswith("weight") and v.dim() == 4}
    on, off = _weights(tmp_path / "on"), _weights(tmp_path / "fresh")
    assert all(torch.allclose(on[name], value, atol=1e-6) for name, value in learned.items())
    assert not all(torch.allclose(off[name], value, atol=1e-6) for name, value in learned.items())
    assert record.inputs.keys() - fresh.inputs.keys() == {"start"}


def test_a_model_of_another_width_is_refused(tiny, tiny_config, tmp_path) -> None:
    stage.run(tiny_config(steps=1), tiny.dataset, tmp_path / "first")
    wider = tiny_config(steps=1, network={"base_channels": 8, "levels": 3})
    with pytest.raises(UsageError, match="cannot start from") as caught:
        stage.run(wider, tiny.dataset, tmp_path / "on", start=tmp_path / "first" / "model")
    assert caught.value.where == "--start"
    assert caught.value.found == "network.base_channels: 4 -> 8 (model -> this training)"
