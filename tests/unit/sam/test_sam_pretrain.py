"""Pre-training: shapes, prompts, losses with known values, and equal bits from equal seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sssflow.errors import DataError
from sssflow.sam import pretrain
from sssflow.sam.build import build_sam2
from sssflow.sam.config import PretrainConfig, RefineConfig
from sssflow.sam.heads import HeadOutput
from sssflow.sam.losses import focal, hard_iou, prompt_loss, soft_dice
from sssflow.sam.pretrain import learning_rate, run
from sssflow.sam.pretrain_data import labelled_source
from sssflow.sam.pretrain_steps import _chances
from sssflow.sam.scenes import draw_scene
from sssflow.sam.shape_prompts import KINDS, correction, draw_prompts
from sssflow.sam.shapes import Canvas, Disc, linear_matrix
from sssflow.sam.weights_io import load_weights, packaged_weights

TINY = PretrainConfig(
    steps=3,
    stop_after=2,
    warmup_steps=0,
    learning_rate=1e-2,
    input_sizes=(64,),
    images_per_step=1,
    objects_per_image=2,
    clip_share=0.5,
    clip_from=0.0,
    clip_length=(2, 2),
    refine=(RefineConfig(steps=1, input_sizes=(64,), grey_hints=True),),
)


def test_a_round_disc_holds_the_area_of_its_circle_and_nothing_at_scale_zero():
    disc = Disc(
        centre_t2=np.full((2, 2), 32.0, np.float32),
        scale_t=np.array([1.0, 0.0], np.float32),
        radius=20.0,
        stretch=1.0,
        angle=0.3,
        waves_k=np.zeros(4, np.float32),
        phases_tk=np.zeros((2, 4), np.float32),
    )
    inside = disc.field(Canvas(64, 2)) > 0
    assert inside[0].sum() == pytest.approx(math.pi * 20**2, rel=0.01)
    assert not inside[1].any()


def test_resampling_averages_when_it_shrinks_and_keeps_a_constant():
    # Two samples to one: their mean. Constant lines stay constant.
    assert linear_matrix(1, 2).tolist() == [[0.5, 0.5]]
    for n_out, n_in in ((7, 3), (3, 7), (5, 5)):
        matrix = linear_matrix(n_out, n_in)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_every_scene_has_an_object_on_its_first_slice_and_grey_values_in_bounds(seed):
    scene = draw_scene(np.random.default_rng(seed), size=64, length=3)
    assert scene.image_tyx.shape == (3, 64, 64)
    assert scene.image_tyx.min() >= 0
    assert scene.image_tyx.max() <= 1
    assert scene.masks_otyx.shape[1:] == (3, 64, 64)
    assert (scene.masks_otyx[:, 0].sum(axis=(1, 2)) >= 12).all()


def test_equal_seeds_draw_equal_scenes_and_others_differ():
    one, two, three = (draw_scene(np.random.default_rng(s), size=64) for s in (5, 5, 6))
    assert one.image_tyx.tobytes() == two.image_tyx.tobytes()
    assert one.masks_otyx.tobytes() == two.masks_otyx.tobytes()
    assert one.image_tyx.tobytes() != three.image_tyx.tobytes()


def test_objects_vanish_in_some_clips():
    rng = np.random.default_rng(0)
    gone = 0
    for _ in range(20):
        areas = draw_scene(rng, size=64, length=5).masks_otyx.sum(axis=(2, 3))
        gone += int((areas[:, -1] == 0).sum())
    assert gone > 0


def _ring() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    radius = np.hypot(y - 30, x - 34)
    return (radius < 20) & (radius > 14)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_a_kind_have_equal_counts_and_inner_points_lie_inside(kind):
    masks = np.stack([_ring(), np.roll(_ring(), 3, axis=1)])
    drawn = draw_prompts(np.random.default_rng(1), masks, kind)
    if drawn.points_np2 is not None:
        assert drawn.points_np2.shape[:2] == drawn.labels_np.shape
        for mask, points, labels in zip(masks, drawn.points_np2, drawn.labels_np, strict=True):
            for (x, y), label in zip(points, labels, strict=True):
                if label < 2:
                    assert mask[int(y), int(x)] == bool(label)
    if drawn.mask_n1yx is not None:
        assert drawn.mask_n1yx.shape == (2, 1, 16, 16)
    assert (drawn.points_np2 is None) == (kind == "mask")


def test_the_first_correction_of_a_missed_object_is_a_point_inside_it():
    mask = _ring()
    points, labels = correction(np.random.default_rng(0), np.zeros_like(mask)[None], mask[None])
    x, y = points[0, 0].astype(int)
    assert mask[y, x]
    assert labels.tolist() == [[1]]
    points, labels = correction(np.random.default_rng(0), np.ones_like(mask)[None], mask[None])
    x, y = points[0, 0].astype(int)
    assert not mask[y, x]
    assert labels.tolist() == [[0]]


def test_focal_and_dice_terms_have_their_hand_computed_values():
    # Logit 0 on one inside and one outside pixel: p = 0.5, (1 - p)^2 log 2 = 0.1733, weights
    # 0.25 and 0.75, mean 0.0866.
    logits = torch.zeros(1, 1, 1, 2)
    target = torch.tensor([[[[1.0, 0.0]]]])
    assert focal(logits, target).item() == pytest.approx(0.5 * 0.25 * math.log(2), rel=1e-5)
    # Overlap 0.5, sums 1 + 1: 1 - (1 + 1) / (2 + 1).
    assert soft_dice(logits, target).item() == pytest.approx(1 / 3, rel=1e-5)
    assert hard_iou(logits + 1, target).item() == 0.5


def _output(logits: torch.Tensor) -> HeadOutput:
    n = len(logits)
    iou, score = torch.full((n, 4), 0.5), torch.zeros(n, 1)
    return HeadOutput(
        logits.requires_grad_(),
        iou.requires_grad_(),
        torch.zeros(n, 4, 8),
        score.requires_grad_(),
    )


def test_masks_of_absent_objects_get_no_gradient_but_their_score_does():
    out = _output(torch.randn(1, 4, 8, 8))
    prompt_loss(out, torch.zeros(1, 1, 16, 16), PretrainConfig()).backward()
    assert out.logits_n4yx.grad.abs().max() == 0
    assert out.score_n1.grad.abs().min() > 0


def test_only_the_single_mask_and_the_best_ambiguous_one_are_trained():
    logits = torch.zeros(1, 4, 8, 8) - 4
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:12, 4:12] = 1
    logits[:, 2, 2:6, 2:6] = 4
    out = _output(logits)
    prompt_loss(out, target, PretrainConfig()).backward()
    moved = out.logits_n4yx.grad.abs().amax(dim=(2, 3))[0] > 0
    assert moved.tolist() == [True, False, True, False]


def test_the_learning_rate_rises_then_falls_to_its_floor():
    config = PretrainConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_objects_that_leave_their_box_empty_are_preferred():
    square = np.zeros((64, 64), bool)
    square[10:30, 10:30] = True
    even, hard = _chances(np.stack([square, _ring()]), 1.0)
    assert hard > 5 * even
    assert _chances(np.stack([square, _ring()]), 0.0).tolist() == [0.5, 0.5]


def test_two_runs_give_equal_weights_and_the_provenance_names_no_folder(tmp_path: Path):
    paths = [run(TINY, tmp_path / name) for name in ("one", "two")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    facts = json.loads(paths[0].with_suffix(".json").read_text())
    assert (facts["part"], facts["step"]) == (2, 1)
    assert facts["config_digest"] == TINY.digest()
    assert str(tmp_path) not in paths[0].with_suffix(".json").read_text()


def test_a_loss_that_is_not_finite_stops_before_any_weight_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pretrain, "still_loss", lambda *_: torch.tensor(math.nan))
    stills = TINY.model_copy(update={"clip_share": 0.0})
    with pytest.raises(DataError, match="step 1 of 2"):
        run(stills, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_clips_train_every_module_that_inference_uses(tmp_path: Path):
    path = run(TINY.model_copy(update={"refine": (), "clip_share": 1.0}), tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY.seed)
        fresh = build_sam2("nano", input_size=64)
    model = build_sam2("nano", input_size=64)
    load_weights(model, path)
    moved = {
        name.split(".")[0]
        for (name, t), before in zip(model.named_parameters(), fresh.parameters(), strict=True)
        if not torch.allclose(t, before, atol=1e-3, rtol=1e-3)
    }
    assert moved >= {
        "image_encoder",
        "memory_attention",
        "memory_encoder",
        "sam_prompt_encoder",
        "sam_mask_decoder",
        "obj_ptr_proj",
    }


def test_labelled_cases_join_and_only_they_are_read(small_dataset):
    manifest, _ = small_dataset(2)
    source = labelled_source(manifest, 1.0)
    assert len(source.cases) == 2
    assert "2 labelled cases" in source.description
    rng = np.random.default_rng(0)
    scene = source.draw(rng, size=64, length=2)
    assert scene.masks_otyx.shape[1:] == (2, 64, 64)
    inside = scene.image_tyx[scene.masks_otyx[0]].mean()
    assert inside > scene.image_tyx[~scene.masks_otyx[0]].mean() + 0.2


def test_the_shipped_weights_say_how_they_were_made():
    facts = json.loads(packaged_weights().with_suffix(".json").read_text())
    assert facts["data"] == "procedural shapes"
    assert facts["command"] == "sssflow sam2 pretrain"
