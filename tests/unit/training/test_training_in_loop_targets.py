"""In-loop SSS: what pseudo labels and prompted losses count, class by class and slice by slice."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Generator, Tensor

from sssflow.networks.config import Sam2StudentConfig
from sssflow.sam.clip_masks import ClipMasks
from sssflow.sam.segmenter import Sam2Segmenter
from sssflow.training import in_loop
from sssflow.training.in_loop_config import SssInLoopConfig
from sssflow.training.views import Geometry

LOSSES = ("ce_dice", "ce", "dice", "bce_dice")
INSIDE, NOT_ASKED = 8.0, 0.0


def answers(label_thw: Tensor, asked: dict[int, list[int]], *, logit: float = INSIDE) -> ClipMasks:
    """Perfect masks, and zeros where a class was not asked for on a slice (as SAM-2's are)."""
    classes = tuple(asked)
    answered = torch.tensor([[t in asked[k] for t in range(len(label_thw))] for k in classes])
    true = torch.stack([label_thw == k for k in classes])
    planes = torch.where(true, logit, -logit)
    planes = torch.where(answered[..., None, None], planes, NOT_ASKED).requires_grad_()
    score = answered.float() * 5
    return ClipMasks(classes, planes, torch.ones_like(score), score, answered, ())


def two_classes() -> Tensor:
    """Four slices of eight by eight: class 1 on the left, class 2 on the right, on each."""
    label = torch.zeros(4, 8, 8, dtype=torch.long)
    label[:, 2:6, 1:4] = 1
    label[:, 2:6, 4:7] = 2
    return label


def loss_of(masks: ClipMasks | None, label: Tensor, kind: str, weight: Tensor | None = None):
    everywhere = torch.ones_like(label, dtype=torch.bool) if weight is None else weight
    return in_loop.decoder_loss([masks], label[None], everywhere[None], 3, kind)


@pytest.mark.parametrize("kind", LOSSES)
def test_classes_that_were_asked_for_on_different_slices_are_all_learnt(kind: str) -> None:
    label = two_classes()
    asked = {1: [1], 2: [2, 3]}
    right, wrong = answers(label, asked), answers(label, asked, logit=-INSIDE)
    assert float(loss_of(right, label, kind).detach()) < 0.02
    loss = loss_of(wrong, label, kind)
    assert float(loss.detach()) > 0.5
    loss.backward()
    learnt = wrong.logits_ntyx.grad.abs().sum((2, 3)) > 0
    assert torch.equal(learnt, wrong.answered_nt)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_mask_that_spills_over_a_class_that_was_not_asked_for_is_corrected(kind: str) -> None:
    label = two_classes()
    masks = answers(label, {1: [1]})
    with torch.no_grad():
        masks.logits_ntyx[0, 1, 2:6, 4:7] = 0.5
    loss_of(masks, label, kind).backward()
    assert bool((masks.logits_ntyx.grad[0, 1, 2:6, 4:7] > 0).all())


def test_losses_of_the_fragment_are_means_over_the_masks_that_were_asked_for() -> None:
    """Slices and classes without an answer would make the mean small."""
    label = two_classes()
    one = answers(label, {1: [1]}, logit=0.3)
    alone = label[1:2].where(label[1:2] == 1, 0)
    expected = in_loop.decoder_loss(
        [answers(alone, {1: [0]}, logit=0.3)], alone[None], torch.ones_like(alone)[None] > 0, 2,
        "bce_dice",
    )  # fmt: skip
    torch.testing.assert_close(loss_of(one, label, "bce_dice"), expected)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_clip_without_an_answer_or_weight_has_a_loss_of_zero(kind: str) -> None:
    label = two_classes()
    masks = answers(label, {1: [1], 2: [2]})
    nothing = torch.zeros_like(masks.answered_nt)
    cases = [
        (masks, torch.zeros_like(label, dtype=torch.bool)),
        (replace(masks, answered_nt=nothing), torch.ones_like(label, dtype=torch.bool)),
    ]
    for found, weight in cases:
        loss = loss_of(found, label, kind, weight)
        assert float(loss.detach()) == 0
        masks.logits_ntyx.grad = None
        loss.backward()
        assert bool((masks.logits_ntyx.grad == 0).all())
    assert float(loss_of(None, label, kind)) == 0


@pytest.mark.parametrize("preset", ["recommended", "fragment"])
def test_without_memory_the_decoder_learns_classes_that_are_largest_on_different_slices(
    preset: str,
) -> None:
    torch.manual_seed(0)
    net = Sam2Segmenter(3, Sam2StudentConfig(weights="random", coarse_width=8)).train()
    settings = SssInLoopConfig(preset=preset, memory="none", clip_slices=4)
    label = torch.zeros(1, 4, 64, 64, dtype=torch.long)
    for t in range(4):
        label[0, t, 8 : 28 if t == 1 else 24, 8:24] = 1
        label[0, t, 36 : 56 if t == 2 else 52, 36:52] = 2
    image = torch.rand(1, 4, 64, 64)
    generator = Generator().manual_seed(0)
    features = net.features(image.view(4, 1, 64, 64))
    prompts = in_loop.true_prompts(label, 3, settings, generator)
    slices = [{p.slice_index for p in item.slices} for item in prompts[0]]
    assert not set.intersection(*slices)
    masks = in_loop.prompted_masks(net, features, image, prompts, settings, None, generator)
    everywhere = torch.ones_like(label, dtype=torch.bool)
    loss = in_loop.decoder_loss(masks, label, everywhere, 3, settings.labelled_loss)
    loss.backward()
    assert float(loss.detach()) > 0.1
    assert any(bool(p.grad.abs().sum() > 0) for p in net.sam.sam_mask_decoder.parameters())


def targets_of(
    logits_tkhw: Tensor, asked: dict[int, list[int]], **changes: object
) -> in_loop.Targets:
    """The pseudo label of one clip, with perfect masks of the coarse arg-max."""
    label = logits_tkhw.argmax(1)
    net = SimpleNamespace(
        class_count=logits_tkhw.shape[1],
        features=lambda slices: [slices],
        head=lambda features: logits_tkhw,
        clip_masks=lambda *_, **__: answers(label, asked),
    )
    view = torch.zeros(1, *label.shape)
    settings = SssInLoopConfig(clip_slices=len(label), **changes)
    geometry = Geometry(torch.zeros(1, *label.shape[1:], 2))
    return in_loop.make_targets(
        net, view, view, geometry, settings, None, Generator().manual_seed(0)
    )


def test_a_pixel_is_used_where_its_class_was_asked_for_on_its_slice() -> None:
    label = two_classes()
    logits = 20 * torch.nn.functional.one_hot(label, 3).movedim(3, 1).float()
    found = targets_of(logits, {1: [1], 2: [1, 2]}, memory="none")
    used = found.confident_cthw[0]
    assert not used[[0, 3]].any(), "nobody was asked"
    assert used[1].all()
    assert torch.equal(used[2], label[2] != 1)
    assert torch.equal(found.label_cthw[0][used], label[used])


def test_a_thin_or_small_object_is_not_taught_as_absent() -> None:
    """A wall of one column and six pixels fill no cell of the masks' grid by half."""
    label = torch.zeros(1, 1, 64, 64, dtype=torch.long)
    label[0, 0, 16:20, 20] = 1
    label[0, 0, 40:43, 41:43] = 2
    for class_index, pushed in ((1, "up"), (2, "up"), (3, "down")):
        score, iou = torch.zeros(1, 1), torch.full((1, 1), 0.5)
        masks = ClipMasks(
            (class_index,), torch.full((1, 1, 16, 16), -1.0), iou.requires_grad_(),
            score.requires_grad_(), torch.ones(1, 1, dtype=torch.bool), (),
        )  # fmt: skip
        in_loop.scores_loss([masks], label).backward()
        assert float(score.grad) == (-0.5 if pushed == "up" else 0.5)
        assert float(iou.grad) == 0, "the grid does not show it, so it cannot measure the mask"


def test_the_predicted_iou_learns_that_of_an_object_on_the_grid() -> None:
    label = torch.zeros(1, 1, 16, 16, dtype=torch.long)
    label[0, 0, :8, :8] = 1
    planes = torch.full((1, 1, 4, 4), -1.0)
    planes[..., :2, :4] = 1.0  # twice the object
    iou, score = torch.tensor([[0.9]], requires_grad=True), torch.full((1, 1), 20.0)
    masks = ClipMasks((1,), planes, iou, score, torch.ones(1, 1, dtype=torch.bool), ())
    loss = in_loop.scores_loss([masks], label)
    assert float(loss.detach()) == pytest.approx(0.4, abs=1e-5)


def coarse_of(probability: tuple[float, float, float]) -> Tensor:
    """Class 1 in the upper half of each of two slices; below, the given background, 1 and 2."""
    logits = torch.full((2, 3, 8, 8), -20.0)
    logits[:, 1, :4] = 20
    logits[:, :, 4:] = torch.tensor(probability).log()[None, :, None, None]
    return logits


@pytest.mark.parametrize(
    ("probability", "threshold", "used"),
    [
        ((0.51, 0.0, 0.49), 0.95, False),
        ((0.94, 0.0, 0.06), 0.95, False),
        ((0.96, 0.0, 0.04), 0.95, True),
        # Doubt between classes that were asked for is for the prompted masks to settle.
        ((0.51, 0.49, 0.0), 0.95, True),
        ((0.51, 0.0, 0.49), 0.0, True),
        ((0.49, 0.0, 0.51), 0.0, False),
    ],
)
def test_background_is_certain_only_where_a_class_without_prompt_is_unlikely(
    probability: tuple[float, float, float], threshold: float, used: bool
) -> None:
    found = targets_of(coarse_of(probability), {1: [0, 1]}, confidence_threshold=threshold)
    assert bool((found.label_cthw[0, :, 4:] == 0).all())
    assert bool((found.confident_cthw[0, :, 4:] == used).all())
    assert bool(found.confident_cthw[0, :, :4].all())


def test_a_class_that_was_asked_for_settles_its_pixels_whatever_the_coarse_head_says() -> None:
    found = targets_of(coarse_of((0.51, 0.0, 0.49)), {1: [0, 1], 2: [0, 1]})
    assert bool(found.confident_cthw.all())
