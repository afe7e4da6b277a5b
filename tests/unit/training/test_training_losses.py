"""Losses, ramps and the moving average against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sssflow.training import losses, ramps
from sssflow.training.ema import ema_ratio, make_teacher, update_teacher


def logits_of(probability):
    """Logits (1,k,1,n) whose softmax is `probability` (n rows of k numbers)."""
    return torch.tensor(probability, dtype=torch.float64).log().T[None, :, None, :].float()


def test_supervised_loss_of_two_pixels_by_hand():
    # Pixel 0: p = (.75, .25), label 0. Pixel 1: p = (.5, .5), label 1.
    value = losses.supervised_loss(logits_of([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([[[0, 1]]]))
    cross_entropy = (math.log(4 / 3) + math.log(2)) / 2
    e = 1e-5
    # Class 0: overlap .75, p^2 sum .5625 + .25, t^2 sum 1. Class 1: .5, .0625 + .25, 1.
    dice_0 = (2 * 0.75 + e) / (0.8125 + 1 + e)
    dice_1 = (2 * 0.5 + e) / (0.3125 + 1 + e)
    expected = 0.5 * (cross_entropy + 1 - (dice_0 + dice_1) / 2)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_ignored_pixels_take_no_part_in_the_supervised_loss():
    known = losses.supervised_loss(logits_of([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([[[0, 1]]]))
    logits = logits_of([[0.75, 0.25], [0.5, 0.5], [0.01, 0.99]])
    label = torch.tensor([[[0, 1, losses.IGNORED]]])
    assert float(losses.supervised_loss(logits, label)) == pytest.approx(float(known), rel=1e-6)


def test_a_perfect_prediction_has_almost_no_loss():
    label = torch.tensor([[[0, 1, 2]]])
    logits = 50 * losses.one_hot_bkhw(label, 3)
    assert float(losses.supervised_loss(logits, label)) < 1e-5


def test_pseudo_label_cross_entropy_is_divided_by_all_not_by_confident_pixels():
    logits = logits_of([[0.75, 0.25], [0.5, 0.5], [0.5, 0.5]])
    label = torch.tensor([[[0, 1, 1]]])
    confident = torch.tensor([[[True, False, False]]])
    value = losses.pseudo_label_loss(logits, label, confident, kind="ce")
    assert float(value) == pytest.approx(math.log(4 / 3) / 3, rel=1e-5)


def test_pseudo_label_dice_sees_confident_pixels_only():
    logits = logits_of([[0.75, 0.25], [0.1, 0.9]])
    label = torch.tensor([[[0, 0]]])
    confident = torch.tensor([[[True, False]]])
    value = losses.pseudo_label_loss(logits, label, confident, kind="dice")
    e = 1e-5
    # Class 1 is in no confident pixel: it does not count.
    assert float(value) == pytest.approx(1 - (1.5 + e) / (0.5625 + 1 + e), rel=1e-5)


def test_confident_background_does_not_push_doubtful_foreground_away():
    logits = torch.zeros(1, 3, 1, 2, requires_grad=True)
    confident = torch.tensor([[[True, False]]])
    label = torch.tensor([[[0, 1]]])
    losses.pseudo_label_loss(logits, label, confident, kind="ce_dice").backward()
    assert float(logits.grad[0, :, 0, 1].abs().max()) == 0.0
    assert float(logits.grad[0, 0, 0, 0]) < 0 < float(logits.grad[0, 1, 0, 0])
    # The push on the confident pixel is equal for both absent classes: none is singled out.
    assert float(logits.grad[0, 1, 0, 0]) == pytest.approx(float(logits.grad[0, 2, 0, 0]))


@pytest.mark.parametrize("kind", ["ce", "dice", "ce_dice"])
def test_without_a_confident_pixel_the_loss_is_zero_and_can_be_differentiated(kind):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    none = torch.zeros(2, 4, 4, dtype=torch.bool)
    label = torch.zeros(2, 4, 4, dtype=torch.long)
    value = losses.pseudo_label_loss(logits, label, none, kind=kind)
    value.backward()
    assert float(value.detach()) == 0.0
    assert float(logits.grad.abs().sum()) == 0.0


def test_consistency_is_the_mean_squared_difference_of_probabilities():
    value = losses.consistency_loss(
        logits_of([[0.75, 0.25]]), torch.tensor([0.5, 0.5])[None, :, None, None]
    )
    assert float(value) == pytest.approx(0.0625, rel=1e-5)


def test_one_mask_alone_keeps_its_probability_and_two_share_by_their_odds():
    alone = losses.mask_target(torch.tensor([0.8, 0.0])[None, :, None, None])
    assert float(alone[0, 0]) == pytest.approx(0.8, abs=1e-3)
    both = losses.mask_target(torch.tensor([0.8, 0.5])[None, :, None, None])
    # Odds 4 and 1 against a background of 1.
    assert both.flatten().tolist() == pytest.approx([4 / 6, 1 / 6], rel=1e-5)


def test_mask_loss_leaves_a_class_without_trust_alone():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    target = torch.rand(1, 2, 4, 4)
    weight = torch.zeros(1, 2, 4, 4)
    for kind in ("mse", "dice"):
        assert losses.mask_loss(logits, target, weight, kind=kind).item() == 0.0
    weight[:, 0] = 0.5
    before = losses.mask_loss(logits, target, weight, kind="mse")
    changed = target.clone()
    changed[:, 1] = 1 - changed[:, 1]
    assert torch.equal(before, losses.mask_loss(logits, changed, weight, kind="mse"))


def test_mask_mse_is_the_weighted_mean_by_hand():
    logits = logits_of([[0.5, 0.5], [0.25, 0.75]])
    target = torch.tensor([[[[1.0, 0.0]]]])
    weight = torch.tensor([[[[1.0, 3.0]]]])
    value = losses.mask_loss(logits, target, weight, kind="mse")
    assert float(value) == pytest.approx((0.25 + 3 * 0.5625) / 4, rel=1e-5)


def test_ramps_at_their_ends_and_middle():
    assert ramps.rising(0, 100) == pytest.approx(math.exp(-5))
    assert ramps.rising(50, 100) == pytest.approx(math.exp(-1.25))
    assert ramps.rising(100, 100) == ramps.rising(1000, 100) == 1.0
    assert ramps.rising(3, 0) == 1.0
    assert [ramps.falling(t, 100) for t in (0, 50, 100)] == [
        ramps.rising(t, 100) for t in (100, 50, 0)
    ]


def test_falling_weight_gives_semisam_published_values():
    # 0.5 * 0.1 * ramp at t = 0, 3000, 6000 of 6000 (dossier B.2), without its steps of 150.
    values = [0.05 * ramps.falling(t, 6000) for t in (0, 3000, 6000)]
    assert values == pytest.approx([0.0500, 0.0143, 0.0003], abs=1e-4)


def test_learning_rate_is_a_closed_form_of_the_step():
    assert ramps.learning_rate_factor("poly", 0, 1000) == 1.0
    assert ramps.learning_rate_factor("poly", 500, 1000) == pytest.approx(0.5**0.9)
    assert ramps.learning_rate_factor("poly", 1000, 1000) == 0.0
    assert ramps.learning_rate_factor("cosine", 500, 1000) == pytest.approx(0.5)
    assert ramps.learning_rate_factor("constant", 999, 1000) == 1.0
    # UA-MT: a tenth from 2,500 on, a hundredth from 5,000 on.
    factors = [
        ramps.learning_rate_factor("step", step, 6000, drop_every=2500)
        for step in (0, 2499, 2500, 4999, 5000, 5999)
    ]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert ramps.learning_rate_factor("constant", 0, 1000, warmup_steps=4) == 0.25
    assert ramps.learning_rate_factor("poly", 1000, 1000, floor=0.1) == 0.1


def test_ema_ratio_starts_at_zero_and_is_capped():
    assert [ema_ratio(t, 0.99) for t in (0, 1, 3)] == [0.0, 0.5, 0.75]
    assert ema_ratio(99, 0.99) == 0.99
    assert ema_ratio(10_000, 0.996) == 0.996


def test_with_a_lag_the_teacher_follows_sooner():
    assert ema_ratio(0, 0.99, 10) == 0.0
    assert ema_ratio(10, 0.99, 10) == 0.5
    assert ema_ratio(90, 0.99, 10) == pytest.approx(0.9)
    assert ema_ratio(10_000, 0.99, 10) == 0.99


def test_the_teacher_averages_parameters_and_batch_norm_statistics():
    student = nn.BatchNorm1d(1)
    teacher = make_teacher(student)
    with torch.no_grad():
        student.weight.fill_(3.0)
        student.running_mean.fill_(8.0)
        student.num_batches_tracked.fill_(7)
    update_teacher(teacher, student, 0.75)
    assert float(teacher.weight) == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert float(teacher.running_mean) == pytest.approx(0.25 * 8)
    assert int(teacher.num_batches_tracked) == 7
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
