"""Compiled networks: the same numbers, inside the steps alone, and a way out without a compiler."""

from __future__ import annotations

import logging

import pytest
import torch
from torch._inductor.exc import InductorError

from sssflow.networks.registry import build_network
from sssflow.networks.trained import load_model
from sssflow.training import stage
from sssflow.training.loop import train_step

NET = {"base_channels": 4, "levels": 3, "dropout": 0.0}


def losses(run):
    return [train_step(run, step)[1] for step in range(3)]


def own(run):
    return run.method.student.__dict__["features"]


@pytest.fixture
def counted(monkeypatch):
    """Calls of compiled parts; the compiler itself is left out."""
    calls = []

    def compile_(function, **_):
        def compiled(value):
            calls.append(function.__name__)
            return function(value)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@pytest.mark.slow
def test_compiled_networks_compute_what_those_as_written_do(prepared, tiny_config, caplog):
    config = tiny_config(network=NET)
    wanted = losses(prepared(config))
    run = prepared(config.model_copy(update={"compile": True}))
    assert losses(run) == pytest.approx(wanted, rel=1e-4)
    assert own(run)._compiled is not None
    assert "not compiled" not in caplog.text


def test_steps_use_them_and_measuring_does_not(counted, tiny, tiny_config, tmp_path):
    config = tiny_config(method="mean_teacher", network=NET, compile=True, steps=2, eval_every=2)
    record = stage.run(config, tiny.dataset, tmp_path)
    assert "validation_dice" in record.metrics
    # Three passes a step: the student on both streams and the teacher.
    assert counted == ["features", "head"] * 6
    names = load_model(tmp_path / "model").net.state_dict()
    assert set(names) == set(build_network(config.network, 3, seed=1).state_dict())


def test_without_a_compiler_training_goes_on_as_written(prepared, tiny_config, monkeypatch, caplog):
    def refuse(_value):
        raise InductorError(RuntimeError("No working C++ compiler found"), None)

    monkeypatch.setattr(torch, "compile", lambda *_args, **_kwargs: refuse)
    config = tiny_config(network=NET)
    wanted = losses(prepared(config))
    with caplog.at_level(logging.WARNING):
        found = losses(prepared(config.model_copy(update={"compile": True})))
    assert found == wanted
    assert "UNet.head is not compiled here and runs as written: " in caplog.text
    assert "No working C++ compiler" in caplog.text
    assert caplog.text.count("UNet.features") == 1
