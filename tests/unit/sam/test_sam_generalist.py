"""SAM-2 as a frozen generalist: slices, volumes, prompts, cache and digest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sssflow.contracts.prompts import SlicePrompt
from sssflow.sam.config import GeneralistConfig
from sssflow.sam.generalist import generalist_digest, load_generalist, slice_prompts, unit_range
from sssflow.sam.geometry import full_window
from sssflow.sam.promptable import Generalist, Prompt, Region, SliceMask

CONFIG = GeneralistConfig(input_size=64)


@pytest.fixture(scope="module")
def nano():
    return load_generalist(CONFIG)


def disc(shape=(64, 64), centre=(20, 40), radius=10):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(rows - centre[0], columns - centre[1]) < radius


def picture(mask, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.02, mask.shape)
    return torch.from_numpy(np.clip(np.where(mask, 0.9, 0.2) + noise, 0, 1)).float()[None, None]


def ask(mask, sample=0, points=((20, 40),), labels=(1,), box=True, rough=None):
    found = np.argwhere(mask)
    return Region(
        sample,
        np.array(points, np.int64).reshape(-1, mask.ndim),
        np.array(labels, np.int64),
        mask,
        np.stack([found.min(0), found.max(0)]) if box else None,
        rough,
    )


def iou(logits, mask):
    found = logits.numpy() > 0
    return (found & mask).sum() / (found | mask).sum()


@pytest.mark.parametrize("box", [True, False])
def test_a_slice_is_segmented_from_a_point_or_a_box(nano, box):
    assert isinstance(nano, Generalist)
    logits, estimate = nano.answer(picture(disc()), [ask(disc(), box=box)])
    assert logits.shape == (1, 64, 64)
    assert logits.dtype == torch.float32
    assert 0 <= float(estimate) <= 1
    assert iou(logits[0], disc()) > 0.7


def test_a_batch_gives_what_the_backend_of_the_infer_stage_gives(nano):
    # Two slices, three objects, prompts of two point counts: grouping must not mix them up.
    second = disc(centre=(40, 20), radius=8)
    image = torch.cat([picture(disc()), picture(second, 1)])
    regions = [
        ask(second, 1, points=((40, 20),)),
        ask(disc(), 0, box=False),
        ask(disc(), 0, points=((20, 40), (50, 50)), labels=(1, 0), box=False),
    ]
    logits, _ = nano.answer(image, regions)
    window = full_window((64, 64))
    features = nano._video.encode(image[:, 0].numpy(), window)
    prompts = [
        (1, Prompt((13.0, 33.0, 27.0, 47.0), ((20.0, 40.0),), (1,))),
        (0, Prompt(None, ((40.0, 20.0),), (1,))),
        (0, Prompt(None, ((40.0, 20.0), (50.0, 50.0)), (1, 0))),
    ]
    for position, (index, prompt) in enumerate(prompts):
        (expected,) = nano._video.segment(features, index, [prompt])
        low = torch.from_numpy(expected.logits_yx)[None, None]
        pasted = window.paste(low, (64, 64))[0]
        torch.testing.assert_close(logits[position], pasted, atol=1e-3, rtol=1e-3)


def test_a_mirrored_view_gets_a_mirrored_mask(nano):
    here, _ = nano.answer(picture(disc()), [ask(disc())])
    flipped = disc()[:, ::-1].copy()
    there, _ = nano.answer(picture(disc()).flip(-1), [ask(flipped, points=((20, 23),))])
    assert iou(there[0].flip(-1), here[0].numpy() > 0) > 0.9


def test_a_rough_mask_moves_the_answer(nano):
    image, at = picture(disc()), ask(disc(), box=False)
    plain, _ = nano.answer(image, [at])
    rough = np.where(disc(radius=5), 6.0, -6.0).astype(np.float32)
    guided, _ = nano.answer(image, [ask(disc(), box=False, rough=rough)])
    assert not torch.allclose(plain, guided)


def test_volumes_are_followed_as_video_and_each_is_its_own(nano):
    volume = np.stack([disc(centre=(20, 40 - i)) for i in range(5)])
    other = np.stack([disc(centre=(40, 20))] * 5)
    image = torch.stack([torch.cat([picture(m)[:, 0] for m in v])[None] for v in (volume, other)])
    regions = [
        ask(other, 1, points=((2, 40, 20),)),
        ask(volume, 0, points=((2, 20, 38),)),
        ask(volume, 0, points=(), labels=(), rough=np.where(volume, 6, -6).astype(np.float32)),
    ]
    logits, estimate = nano.answer(image, regions)
    assert logits.shape == (3, 5, 64, 64)
    assert estimate.shape == (3,)
    assert iou(logits[0], other) > 0.6
    assert iou(logits[1], volume) > 0.6
    assert iou(logits[2], volume) > 0.6


def test_the_rating_of_a_volume_is_that_of_the_slices_that_show_the_object(nano, monkeypatch):
    def answer(estimate, score):
        return [SliceMask(np.full((16, 16), 5.0, np.float32), estimate, score)]

    found = {0: answer(0.1, -3.0), 1: answer(0.9, 4.0), 2: answer(0.7, 4.0), 3: answer(0.0, -3.0)}
    monkeypatch.setattr("sssflow.sam.generalist.follow", lambda *_: found)
    volume = np.stack([disc()] * 4)
    image = torch.cat([picture(m)[:, 0] for m in volume])[None, None]
    logits, estimate = nano.answer(image, [ask(volume, points=((1, 20, 40),))])
    assert [bool((part > 0).any()) for part in logits[0]] == [False, True, True, False]
    assert float(estimate) == pytest.approx(0.8)


def test_prompted_slices_lie_around_the_largest_support():
    support = np.zeros((6, 12, 12), np.bool_)
    support[1:5, 4:7, 4:7] = True
    support[2, 4:9, 4:9] = True  # the largest; with a step of 2, slice 4 is prompted too
    points = ((2, 6, 6), (2, 5, 4), (4, 0, 11), (3, 5, 5))
    found = slice_prompts(ask(support, points=points, labels=(1, 1, 0, 1)), 2)
    assert found.slices == (
        SlicePrompt(
            slice_index=2,
            box_xyxy_px=(4, 4, 8, 8),
            points_xy_px=((6, 6), (4, 5)),
            point_labels=(1, 1),
        ),
        SlicePrompt(  # for its click alone
            slice_index=3, box_xyxy_px=(4, 4, 6, 6), points_xy_px=((5, 5),), point_labels=(1,)
        ),
        SlicePrompt(
            slice_index=4, box_xyxy_px=(4, 4, 6, 6), points_xy_px=((11, 0),), point_labels=(0,)
        ),
    )
    box = slice_prompts(ask(support, points=(), labels=()), 2)
    assert [p.points_xy_px for p in box.slices] == [(), ()]
    wide = slice_prompts(replace(ask(support, points=(), labels=()), margin_px=4), 2)
    assert [p.box_xyxy_px for p in wide.slices] == [(0, 0, 11, 11), (0, 0, 10, 10)]
    # Without a box, a slice that has no click inside gets the deepest pixel first.
    clicks = slice_prompts(ask(support, points=points, labels=(1, 1, 0, 1), box=False), 2)
    assert [p.points_xy_px for p in clicks.slices] == [
        ((6, 6), (4, 5)),
        ((5, 5),),
        ((5, 5), (11, 0)),
    ]
    assert clicks.slices[2].point_labels == (1, 0)
    empty = ask(support, points=points, labels=(1, 1, 0, 1))
    with pytest.raises(ValueError, match="support"):
        slice_prompts(Region(0, empty.points_pd, empty.labels_p, np.zeros_like(support)), 2)


def test_the_model_is_frozen_and_its_weights_stay():
    generalist = load_generalist(CONFIG)
    before = {k: v.clone() for k, v in generalist._model.state_dict().items()}
    image = picture(disc()).requires_grad_()
    logits, estimate = generalist.answer(image, [ask(disc())])
    assert not logits.requires_grad
    assert not estimate.requires_grad
    assert not any(p.requires_grad for p in generalist._model.parameters())
    assert not any(m.training for m in generalist._model.modules())
    assert all(torch.equal(v, generalist._model.state_dict()[k]) for k, v in before.items())


def test_a_cached_slice_gives_the_same_bits_and_the_cache_stays_small():
    cached = load_generalist(CONFIG.model_copy(update={"slices_cached": 2}))
    images = torch.cat([picture(disc(), seed) for seed in range(3)])
    regions = [ask(disc(), i) for i in range(3)]
    first, _ = cached.answer(images, regions)
    again, _ = cached.answer(images, regions)
    alone, _ = cached.answer(images[1:2], [ask(disc(), 0)])
    assert torch.equal(first, again)
    torch.testing.assert_close(first[1], alone[0], atol=1e-4, rtol=1e-4)
    assert len(cached._cache) == 2


def test_the_digest_names_weights_and_settings_but_not_their_place():
    one = generalist_digest(CONFIG, "a" * 64)
    assert generalist_digest(CONFIG, "b" * 64) != one
    elsewhere = CONFIG.model_copy(update={"weights": "x.pt", "slices_cached": 9})
    assert generalist_digest(elsewhere, "a" * 64) == one
    assert generalist_digest(CONFIG.model_copy(update={"input_size": 96}), "a" * 64) != one


def test_values_beyond_0_and_1_are_brought_there_and_others_stay():
    inside = torch.rand(1, 1, 20, 10)
    image = torch.cat([inside, torch.arange(200.0).view(1, 1, 20, 10)])
    found = unit_range(image)
    assert torch.equal(found[:1], inside)
    # Of 200 values the 0.5 percentile is number 0 (of 0.995), the 99.5 number 199 (of 198.005).
    assert float(found[1].max()) == 1.0
    assert float(found[1, 0, 10, 0]) == pytest.approx(100 / 199)
    assert unit_range(inside) is inside


def test_nothing_to_ask_gives_nothing(nano):
    logits, estimate = nano.answer(picture(disc()), [])
    assert logits.shape == (0, 64, 64)
    assert estimate.shape == (0,)
