"""What no method may do, asked of every entry of the registry: a new line there is covered here.

SemiSAM is asked once per base. Nobody is left out. What only some methods do is asked elsewhere:
the sign of clicks and prompts that move with a view (semisam: test_training_semisam.py;
sss_in_loop: test_training_in_loop.py; sss takes its prompts from the room prompts), and SemiSAM's
preset that leaks on purpose, which must fail the question about labels
(test_training_semisam_labels.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Generator

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Role
from sssflow.contracts.masks import MaskSet
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.training import stage
from sssflow.training.loop import batch_of
from sssflow.training.methods.registry import METHODS
from sssflow.training.semisam_config import SemiSamConfig
from sssflow.volume.packed import write_packed

ASKED = (*METHODS, "semisam on ua_mt", "semisam on dan")
NOBODY_IS_SURE = {
    "ua_mt": {"passes": 2, "entropy_share_start": 1e-6, "entropy_share_end": 1e-6},
    "fixmatch": {"confidence_threshold": 1.0},
    "unimatch": {"confidence_threshold": 1.0},
    "unimatch_v2": {"confidence_threshold": 1.0},
}


@pytest.fixture
def config_of(tiny_config):
    """The configuration of one of ASKED, with changes of top-level keys."""

    def make(asked, **changes):
        method, _, base = asked.partition(" on ")
        config = tiny_config(method=method, **changes)
        if base:
            semisam = config.semisam.model_copy(update={"base": base})
            config = config.model_copy(update={"semisam": semisam})
        return config

    return make


@pytest.fixture
def weights_after(request):
    """Train and give the bytes of the weights."""

    def train(config, data, out):
        generalist = request.getfixturevalue("nano") if config.method == "semisam" else None
        masks = [data.masks] if config.method == "sss" else []
        stage.run(config, data.dataset, out, masks=masks, generalist=generalist)
        return (out / "model" / "weights.safetensors").read_bytes()

    return train


def first_layer(net):
    """What sees the image first; SAM-2's parameters begin with those of its memory."""
    names = dict(net.named_parameters())
    return next(p for name, p in names.items() if "sam." not in name or "image_encoder" in name)


def terms_of(run, batch):
    """The terms late enough that no method is still in a phase on labelled cases alone."""
    torch.manual_seed(0)
    return run.method.step(batch, run.config.steps - 1, Generator().manual_seed(0))


def gradients(module):
    return [float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None]


def write_labels_of_the_unlabelled(data, label_of):
    for case_id, truth in data.truth.items():
        if case_id.startswith("b"):
            file = data.dataset.parent / "labels" / f"{case_id}.b2nd"
            file.unlink(missing_ok=True)
            if label_of is not None:
                write_packed(file, label_of(truth))


def see_background_alone(net):
    """Let a segmentation net be sure of background everywhere; what is none stays as it is."""
    if hasattr(net, "coarse"):
        net.coarse.body[-1].bias[0] = 100.0
    elif hasattr(net, "classify") and hasattr(net, "features"):
        net.classify.bias[0] = 50.0


def test_every_method_is_asked_and_semisam_on_every_base():
    bases = {
        f"semisam on {base}" for base in get_args(SemiSamConfig.model_fields["base"].annotation)
    }
    default = f"semisam on {SemiSamConfig().base}"
    assert set(ASKED) == set(METHODS) | bases - {default}
    assert len(ASKED) >= 14


@pytest.mark.usefixtures("seeing_specialist")
@pytest.mark.parametrize("method", ASKED)
def test_labels_of_unlabelled_cases_change_no_bit(
    method, fresh_tiny, config_of, weights_after, tmp_path
):
    rng = np.random.default_rng(0)
    poisons = {
        "truth": lambda truth: truth,
        "noise": lambda truth: rng.integers(0, 3, truth.shape).astype(np.uint8),
        "missing": None,
    }
    found = []
    for name, poison in poisons.items():
        write_labels_of_the_unlabelled(fresh_tiny, poison)
        found.append(weights_after(config_of(method, steps=3), fresh_tiny, tmp_path / name))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("method", ASKED)
def test_images_and_labels_of_test_cases_are_never_opened(
    method, fresh_tiny, config_of, weights_after, tmp_path
):
    manifest = load_contract(DatasetManifest, fresh_tiny.dataset)
    base = fresh_tiny.dataset.parent
    model = next(case for case in manifest.cases if isinstance(case, LabelledCase))
    image = write_packed(base / "images" / "t1.b2nd", np.ones(model.grid.shape_shw), base=base)
    label = write_packed(
        base / "labels" / "t1.b2nd", np.ones(model.grid.shape_shw, np.uint8), base=base
    )
    case = model.model_copy(
        update={
            "case_id": "t1", "patient_id": "pt1", "role": Role.TEST, "image": image, "label": label
        }
    )  # fmt: skip
    changed = manifest.model_copy(update={"cases": (*manifest.cases, case)})
    save_contract(changed, fresh_tiny.dataset)
    masks = load_contract(MaskSet, fresh_tiny.masks)
    again = masks.model_copy(update={"dataset_digest": changed.digest})
    save_contract(again, fresh_tiny.masks)
    config = config_of(method, steps=3)
    there = weights_after(config, fresh_tiny, tmp_path / "there")
    for folder in ("images", "labels"):
        (base / folder / "t1.b2nd").unlink()
    assert weights_after(config, fresh_tiny, tmp_path / "gone") == there


@pytest.mark.usefixtures("seeing_specialist")
@pytest.mark.parametrize("method", ASKED)
def test_each_term_alone_gives_the_student_a_gradient_and_no_target_any(
    method, prepared, config_of
):
    run = prepared(config_of(method))
    # A perturbed teacher: Mean Teacher's term is zero by right while both nets are equal.
    if run.method.teacher is not None:
        with torch.no_grad():
            for parameter in run.method.teacher.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    terms = terms_of(run, batch_of(run, 0))
    assert len(terms.terms) >= 1 + run.method.needs_unlabelled
    for name, term in terms.terms.items():
        run.method.modules.zero_grad(set_to_none=True)
        term.backward(retain_graph=True)
        # From the first layer on, or the term would train only the head.
        first = first_layer(run.method.student)
        assert max(gradients(run.method.student)) > 1e-6, name
        assert first.grad is not None, name
        assert float(first.grad.abs().max()) > 0, name
        if run.method.teacher is not None:
            assert not gradients(run.method.teacher), name
        for apart in run.method.trained_apart:
            assert not gradients(run.method.modules[apart]), name


@pytest.mark.parametrize("method", ASKED)
def test_losses_beside_the_student_leave_it_alone_and_train_their_own(method, prepared, config_of):
    run = prepared(config_of(method))
    terms = terms_of(run, batch_of(run, 0))
    others = [m for name, m in run.method.modules.items() if name not in ("student", "teacher")]
    for name, term in terms.beside.items():
        run.method.modules.zero_grad(set_to_none=True)
        term.backward(retain_graph=True)
        assert not gradients(run.method.student), name
        assert max(max(gradients(module), default=0.0) for module in others) > 0, name
    apart = [p for o in run.method.own_optimisers.values() for g in o.param_groups for p in g["params"]]  # noqa: E501 # fmt: skip
    shared = {id(p) for p in apart} & {id(p) for p in run.method.trainable()}
    assert not shared
    assert bool(apart) == bool(run.method.trained_apart)


@pytest.mark.parametrize("image", ["as it is", "constant"])
@pytest.mark.parametrize("method", ASKED)
def test_without_foreground_or_certainty_the_loss_and_its_gradient_are_finite(
    method, image, prepared, config_of
):
    run = prepared(config_of(method, **NOBODY_IS_SURE))
    batch = batch_of(run, 0)
    labelled, unlabelled = batch.labelled, batch.unlabelled
    empty = torch.zeros_like(labelled.label_bhw)
    labelled = replace(labelled, label_bhw=empty)
    if image == "constant":
        labelled = replace(labelled, image_bchw=torch.zeros_like(labelled.image_bchw))
        if unlabelled is not None:
            flat = torch.zeros_like(unlabelled.image_bchw)
            unlabelled = replace(unlabelled, image_bchw=flat)
    terms = terms_of(run, replace(batch, labelled=labelled, unlabelled=unlabelled))
    assert torch.isfinite(terms.total)
    terms.total.backward()
    assert all(np.isfinite(gradients(run.method.modules)))


@pytest.mark.parametrize("method", ASKED)
def test_with_all_background_predictions_the_loss_is_finite(method, prepared, config_of):
    run = prepared(config_of(method))
    with torch.no_grad():
        for net in run.method.modules.values():
            see_background_alone(net)
    terms = terms_of(run, batch_of(run, 0))
    assert torch.isfinite(terms.total)
    terms.total.backward()
    assert all(np.isfinite(gradients(run.method.modules)))
