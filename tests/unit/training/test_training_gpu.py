"""Training on a pretended GPU: nothing of a step stays on the processor, and it seldom waits."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from semisam_cases import LOOSE
from torch import nn

from disc_scans import draw
from pretend_gpu import DEVICE, OnGpu, PretendGenerator, TwoDevicesError, pretended
from sssflow.evaluation import stage as evaluate_stage
from sssflow.evaluation.config import EvaluateConfig
from sssflow.networks.trained import load_model
from sssflow.prediction import stage as prediction_stage
from sssflow.prompts import stage as prompts_stage
from sssflow.prompts.config import PromptConfig
from sssflow.sam import stage as sam_stage
from sssflow.sam.config import GeneralistConfig, SamConfig
from sssflow.sam.generalist import load_generalist
from sssflow.training import stage
from sssflow.training.loop import train_step
from sssflow.training.methods.registry import METHODS

PATCH = {"patch": {"size_shw": [16, 16, 16]}}
NETS_3D = {
    "vnet": {"name": "vnet", "dimensions": 3, "base_channels": 4, "levels": 3},
    "unet3d": {"name": "unet3d", "dimensions": 3, "base_channels": 4, "levels": 3},
}
STEPS = 3
WAITS = {"supervised": 2, "bcp": 5, "dan": 5}
"""Of a step: what is read (one copy a stream) and the loss make three; bcp looks for the largest
component on the processor, dan names its two sides anew. More is a slip that costs time."""
ASK = ("semisam", "sss_in_loop")
"""Their prompts are found on the processor: they wait as often as they ask, and a prompt is a
discrete choice, so that one rounding moves one."""


VOLUME_METHODS = [name for name in METHODS if 3 in METHODS[name].dimensions and name not in ASK]
THIN = {"patch": {"size_shw": [4, 16, 16]}}


@pytest.fixture
def nano():
    """One of its own: it moves to the GPU and stays there."""
    return load_generalist(GeneralistConfig(input_size=64))


def losses_of(run):
    return [train_step(run, step)[1] for step in range(STEPS)]


def on_gpu(run):
    modules = run.method.modules
    return all(isinstance(value, OnGpu) for value in (*modules.parameters(), *modules.buffers()))


def slow_in_loop(name):
    return pytest.param(name, marks=pytest.mark.slow) if name == "sss_in_loop" else name


@pytest.mark.parametrize("method", [slow_in_loop(name) for name in METHODS])
def test_a_method_computes_there_what_it_computes_on_the_processor(method, prepared, tiny_config):
    config = tiny_config(method=method)
    with pretended():
        run = prepared(config)
        assert on_gpu(run)
        found = losses_of(run)
    rel = 0.02 if method in ASK else 1e-3
    assert found == pytest.approx(losses_of(prepared(config)), rel=rel)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ASK])
def test_a_step_waits_for_the_gpu_no_more_than_it_must(method, prepared, tiny_config):
    with pretended() as gpu:
        run = prepared(tiny_config(method=method))
        train_step(run, 1)
        gpu.waits.clear()
        train_step(run, 2)
        assert 0 < gpu.waits.total() <= WAITS.get(method, 3), gpu.waits


@pytest.mark.parametrize("net", NETS_3D)
@pytest.mark.parametrize("method", VOLUME_METHODS)
def test_volumes_are_trained_on_there_too(method, net, prepared, tiny_config):
    config = tiny_config(
        method=method, network=NETS_3D[net], preprocessing=PATCH, foreground_probability=0.5
    )
    with pretended():
        run = prepared(config)
        assert on_gpu(run)
        found = losses_of(run)
    assert found == pytest.approx(losses_of(prepared(config)), rel=1e-3)


@pytest.mark.usefixtures("seeing_specialist")
@pytest.mark.parametrize("network", [{"base_channels": 4, "levels": 3}, NETS_3D["vnet"]])
@pytest.mark.parametrize("prompts", ["point", "box", "mask", "unc"])
def test_the_generalist_goes_where_the_student_is(network, prompts, prepared, tiny_config):
    rules = THIN if "dimensions" in network else {"size_hw": [32, 32]}
    settings = {**LOOSE, "prompts": prompts}
    config = tiny_config(method="semisam", network=network, preprocessing=rules, semisam=settings)
    with pretended():
        run = prepared(config)
        terms, found = train_step(run, 0)
        assert float(sum(v for k, v in terms.facts.items() if k.startswith("accepted"))) > 0
        assert all(isinstance(p, OnGpu) for p in run.method.generalist._model.parameters())
    assert found == pytest.approx(train_step(prepared(config), 0)[1], rel=0.02)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter.*")  # it does copy here
@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "sss", "dan"])
def test_a_run_is_measured_kept_and_resumed_there(method, tiny, tiny_config, tmp_path):
    config = tiny_config(method=method, checkpoint_every_steps=4, keep_last=9)
    masks = [tiny.masks] if method == "sss" else []
    with pretended():
        record = stage.run(config, tiny.dataset, tmp_path / "whole", masks=masks)
        assert "validation_dice" in record.metrics
        halted = tmp_path / "halted"
        stage.run(config, tiny.dataset, halted, masks=masks)
        for name in ("run.json", "checkpoints/step_00000006/MANIFEST.json"):
            (halted / name).unlink()
        stage.run(config, tiny.dataset, halted, masks=masks)
    whole, again = (load_model(tmp_path / name / "model") for name in ("whole", "halted"))
    pairs = zip(whole.net.state_dict().values(), again.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("network", [{"base_channels": 4, "levels": 3}, NETS_3D["vnet"]])
def test_prompts_masks_scores_and_predictions_are_made_there_as_on_the_processor(
    network, tiny, tiny_config, tmp_path
):
    rules = PATCH if "dimensions" in network else {"size_hw": [32, 32]}
    config = tiny_config(network=network, preprocessing=rules, steps=60)
    stage.run(config, tiny.dataset, tmp_path / "run")
    model = tmp_path / "run" / "model" / "model.json"
    scan = tmp_path / "scan.nii.gz"
    nib.Nifti1Image(draw(7)[0].T, np.eye(4)).to_filename(scan)

    def chain(out):
        prompts_stage.run(PromptConfig(), tiny.dataset, model, out)
        sam_stage.run(SamConfig(input_size=64), tiny.dataset, out / "prompts.json", out / "sam")
        measuring = EvaluateConfig(
            test_time_flips=True, largest_component=True, bootstrap_resamples=100,
            permutation_flips=100,
        )  # fmt: skip
        evaluate_stage.run(measuring, tiny.dataset, {"one": model, "two": model}, out / "measured")
        prediction_stage.run(measuring, [model, model], scan, out / "predicted")
        return {
            str(path.relative_to(out)): path.read_bytes()
            for path in out.rglob("*")
            if path.suffix in (".b2nd", ".gz", ".csv") or path.name == "prompts.json"
        }

    with pretended() as gpu:
        found = chain(tmp_path / "gpu")
        assert gpu.launches["aten::native_layer_norm"] > 0  # SAM-2's; the student has none
    wanted = chain(tmp_path / "cpu")
    assert len(wanted) > 6
    assert set(found) == set(wanted)
    different = [name for name, data in wanted.items() if found[name] != data]
    assert different == []


def test_what_a_gpu_refuses_is_refused_by_the_pretended_one():
    net = nn.Conv2d(1, 1, 3)
    with pretended():
        image = torch.zeros(1, 1, 4, 4, device=DEVICE)
        with pytest.raises(TwoDevicesError, match="convolution"):
            net(image)
        net.to(DEVICE)
        assert isinstance(net(image), OnGpu)
        with pytest.raises(TwoDevicesError):
            image + torch.ones(4)
        assert (image + torch.tensor(1.0)).sum().item() == 16
        with pytest.raises(TwoDevicesError):
            torch.zeros(4)[torch.tensor([1], device=DEVICE)]
        assert image.flatten()[torch.tensor([1])].tolist() == [0.0]
        with pytest.raises(TwoDevicesError, match="a list as index"):
            image[0, 0][[1, 3]] = torch.ones(2, 4, device=DEVICE)
        with pytest.raises(TwoDevicesError, match="generator"):
            torch.rand(3, generator=PretendGenerator(DEVICE))
        with pytest.raises(TwoDevicesError, match="generator"):
            torch.rand(3, generator=PretendGenerator(), device=DEVICE)
        with pytest.raises((TypeError, RuntimeError)):
            image.numpy()
