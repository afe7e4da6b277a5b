"""Steps in bfloat16, which a GPU takes by itself: they run, and mean what those in float32 mean."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from semisam_cases import LOOSE

from sssflow.training import stage
from sssflow.training.loop import train_step, uses_bfloat16
from sssflow.training.methods.registry import METHODS

NETS = {
    "unet": ({"base_channels": 4, "levels": 3}, {"size_hw": [32, 32]}),
    "vnet": (
        {"name": "vnet", "dimensions": 3, "base_channels": 4, "levels": 3},
        {"patch": {"size_shw": [16, 16, 16]}},
    ),
    "unet3d": (
        {"name": "unet3d", "dimensions": 3, "base_channels": 4, "levels": 3},
        {"patch": {"size_shw": [16, 16, 16]}},
    ),
}
OWN_NETWORK = "sss_in_loop"
RUNS = [
    pytest.param(method, net, marks=pytest.mark.slow if method == OWN_NETWORK else ())
    for method in METHODS
    for net in NETS
    if (3 if "3d" in net or net == "vnet" else 2) in METHODS[method].dimensions
    and method != "semisam"
]


def both(prepared, config):
    """The terms and the loss of one step in float32 and in bfloat16."""
    precisions = [config.model_copy(update={"precision": p}) for p in ("float32", "bfloat16")]
    return [train_step(prepared(one), 0) for one in precisions]


@pytest.mark.parametrize(("method", "net"), RUNS)
def test_a_step_has_about_the_loss_of_full_precision(method, net, prepared, tiny_config):
    network, rules = NETS[net]
    own = {} if method == OWN_NETWORK else {"network": network, "preprocessing": rules}
    (_, exact), (_, found) = both(prepared, tiny_config(method=method, **own))
    assert found == pytest.approx(exact, rel=0.05)
    assert found != exact


@pytest.mark.usefixtures("seeing_specialist")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("prompts", ["point", "box", "mask", "unc"])
def test_the_generalist_answers_inside_such_a_step(net, prompts, prepared, tiny_config):
    network, rules = NETS[net]
    thin = rules if net == "unet" else {"patch": {"size_shw": [4, 16, 16]}}
    settings = {**LOOSE, "prompts": prompts}
    config = tiny_config(method="semisam", network=network, preprocessing=thin, semisam=settings)
    (_, exact), (terms, found) = both(prepared, config)
    assert float(sum(v for k, v in terms.facts.items() if k.startswith("accepted"))) > 0
    assert found == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("capable", [False, True])
def test_the_record_says_which_precision_the_device_chose(
    capable, tiny, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("sssflow.training.loop.computes_in_bfloat16", lambda: capable)
    record = stage.run(tiny_config(steps=1, precision="auto"), tiny.dataset, tmp_path)
    assert record.device == f"cpu, 1 thread(s), {'bfloat16' if capable else 'float32'}"


@pytest.mark.parametrize(
    ("gpu", "major", "half"), [("V100", 7, False), ("T4", 7, False), ("A100", 8, True)]
)
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32_unless_told(
    gpu, major, half, tiny_config, monkeypatch
):
    found = SimpleNamespace(name=gpu, major=major)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    chosen = {
        precision: uses_bfloat16(tiny_config(precision=precision), torch.device("cuda"))
        for precision in ("auto", "float32", "bfloat16")
    }
    assert chosen == {"auto": half, "float32": False, "bfloat16": True}
