"""3-D runs: geometry against numpy, boxes, patches, and a whole tiny run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Generator

from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.model import PatchRule, Preprocessing, SlidingWindow
from sssflow.errors import UsageError
from sssflow.evaluation import stage as evaluate_stage
from sssflow.evaluation.config import EvaluateConfig
from sssflow.networks.trained import load_model
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.config import CutMixConfig, StrongConfig, WeakConfig
from sssflow.training.patches import load_labelled_volumes, load_unlabelled_volumes
from sssflow.training.views import paste, random_boxes, strong_view, weak_geometry

STILL = WeakConfig(
    flip_probability=0, rot90_probability=0, affine_probability=0, elastic_probability=0
)
SAM2 = {"name": "sam2"}
PATCH = {"patch": {"size_shw": [4, 16, 16]}}
VNET = {"name": "vnet", "dimensions": 3, "base_channels": 4, "levels": 3}


def generator(seed=0):
    return Generator().manual_seed(seed)


def test_flips_and_quarter_turns_are_numpys_to_the_bit_in_image_and_label():
    config = STILL.model_copy(update={"flip_probability": 0.5, "rot90_probability": 1.0})
    image = torch.rand(64, 1, 3, 6, 6)
    label = (image[:, 0] * 200).to(torch.uint8)
    geometry = weak_geometry((64, 3, 6, 6), config, generator())
    moved, moved_label = geometry.image(image), geometry.label(label)
    seen = set()
    for number in range(64):
        wanted = {
            (k, axes): np.flip(np.rot90(image[number, 0].numpy(), k, (1, 2)), axes)
            for k in range(4)
            for axes in ((), (0,))
        } | {
            (k, axes): np.flip(np.rot90(image[number, 0].numpy(), k, (1, 2)), axes)
            for k in range(2)
            for axes in ((1,), (0, 1))
        }  # rotations by 2 and 3 with a row flip are those by 0 and 1 with a column flip
        wanted |= {
            (k, axes): np.flip(np.rot90(image[number, 0].numpy(), k, (1, 2)), axes)
            for k in range(2)
            for axes in ((2,), (0, 2))
        }
        fits = [key for key, value in wanted.items() if np.array_equal(moved[number, 0], value)]
        assert len(fits) == 1
        seen.add(fits[0])
        assert torch.equal(moved_label[number], (moved[number, 0] * 200).to(torch.uint8))
    assert len(seen) > 10


def test_an_oblong_patch_gets_half_turns_only():
    config = STILL.model_copy(update={"rot90_probability": 1.0})
    image = torch.rand(32, 1, 2, 6, 4)
    moved = weak_geometry((32, 2, 6, 4), config, generator()).image(image)
    half = image.flip(3, 4)
    kinds = [torch.equal(m, h) for m, h in zip(moved, half, strict=True)]
    same = [torch.equal(m, i) for m, i in zip(moved, image, strict=True)]
    assert all(a != b for a, b in zip(kinds, same, strict=True))
    assert any(kinds)
    assert any(same)


def test_the_plane_geometry_is_one_for_all_slices_and_for_image_and_label():
    config = WeakConfig(affine_probability=1.0, elastic_probability=1.0, elastic_share=0.04)
    square = torch.zeros(24, 24)
    square[8:17, 7:15] = 1
    image = square[None, None, None].repeat(8, 1, 5, 1, 1)
    geometry = weak_geometry((8, 5, 24, 24), config, generator(3))
    moved, hard = geometry.image(image), geometry.label(image[:, 0].to(torch.uint8))
    assert torch.equal(moved[:, :, :1].expand_as(moved), moved)
    disagree = ((moved[:, 0] > 0.5) != (hard == 1)).float().mean((1, 2, 3))
    assert float(disagree.max()) < 0.02
    assert not torch.equal(moved[0], moved[1])


def test_strong_views_of_patches_keep_shape_and_blur_along_the_slices():
    image = torch.rand(3, 1, 6, 10, 12)
    view = strong_view(image, StrongConfig(cutout_probability=1.0), generator())
    assert view.shape == image.shape
    assert torch.isfinite(view).all()
    off = {name: 0.0 for name in StrongConfig.model_fields if name.endswith("probability")}
    assert torch.allclose(strong_view(image, StrongConfig(**off), generator()), image, atol=1e-5)
    point = torch.zeros(1, 1, 9, 9, 9)
    point[0, 0, 4, 4, 4] = 1
    only = StrongConfig(**{**off, "blur_probability": 1.0})
    blurred = strong_view(point, only, generator(4))
    along = [blurred[0, 0, :, 4, 4], blurred[0, 0, 4, :, 4], blurred[0, 0, 4, 4]]
    assert torch.allclose(along[0], along[1], atol=1e-6)
    assert torch.allclose(along[1], along[2], atol=1e-6)
    assert 0 < float(along[0][3]) < float(along[0][4])


def test_boxes_have_the_asked_share_of_the_volume_and_lie_inside():
    config = CutMixConfig(probability=1.0, area_low=0.1, area_high=0.3, aspect=2.0)
    boxes = random_boxes(torch.Size((64, 1, 20, 24, 28)), config, generator())
    assert boxes.shape == (64, 20, 24, 28)
    share = boxes.float().mean((1, 2, 3))
    assert float(share.min()) > 0.06
    assert float(share.max()) <= 0.3
    for box in boxes:
        sides = [(axis.max() - axis.min() + 1).item() for axis in torch.where(box)]
        assert int(box.sum()) == sides[0] * sides[1] * sides[2]
    assert len({int(box.any(2).any(1).sum()) for box in boxes}) > 3


def test_paste_takes_the_partner_inside_the_box_of_a_patch():
    boxes = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    boxes[0, 0] = True
    label = torch.stack([torch.full((2, 2, 2), 1), torch.full((2, 2, 2), 2)])
    pasted = paste(label, boxes)
    assert pasted[0].flatten().tolist() == [2] * 4 + [1] * 4
    assert (pasted[1] == 2).all()
    assert torch.equal(paste(label[:, None].float(), boxes)[:, 0], pasted.float())


def volumes(tiny, rule: PatchRule, probability: float = 0.0):
    manifest = load_contract(DatasetManifest, tiny.dataset)
    return load_labelled_volumes(
        manifest,
        tiny.dataset.parent,
        Preprocessing(patch=rule),
        rule,
        memory_gib=1,
        foreground_probability=probability,
    )


def test_patches_are_cut_from_image_and_label_at_the_same_place_and_by_the_seed(tiny):
    stream = volumes(tiny, PatchRule(size_shw=(2, 16, 16)))
    index = torch.tensor([0, 1, 0])
    batch = stream.labelled_batch(index, seed=3)
    assert batch.image_bchw.shape == (3, 1, 2, 16, 16)
    assert batch.case_ids == ("a1", "a2", "a1")
    again = stream.labelled_batch(index, seed=3)
    assert torch.equal(batch.image_bchw, again.image_bchw)
    assert not torch.equal(batch.image_bchw, stream.labelled_batch(index, seed=4).image_bchw)
    found = torch.from_numpy(tiny.truth["a1"]).unfold(0, 2, 1).unfold(1, 16, 1).unfold(2, 16, 1)
    assert (found == batch.label_bhw[0]).flatten(3).all(3).any()


def test_foreground_patches_are_centred_on_a_class(tiny):
    stream = volumes(tiny, PatchRule(size_shw=(1, 8, 8)), probability=1.0)
    batch = stream.labelled_batch(torch.tensor([0, 1] * 20), seed=0)
    assert (batch.label_bhw[:, 0, 4, 4] > 0).all()
    anywhere = volumes(tiny, PatchRule(size_shw=(1, 8, 8)))
    batch = anywhere.labelled_batch(torch.tensor([0, 1] * 20), seed=0)
    assert not (batch.label_bhw[:, 0, 4, 4] > 0).all()


def test_a_patch_larger_than_the_volume_is_padded_with_zeros_and_background(tiny):
    stream = volumes(tiny, PatchRule(size_shw=(8, 40, 36)))
    batch = stream.labelled_batch(torch.tensor([0]), seed=0)
    assert batch.image_bchw.shape == (1, 1, 8, 40, 36)
    assert not batch.label_bhw[0, :2].any()
    assert not batch.image_bchw[0, 0, 5:].any()
    assert np.array_equal(batch.label_bhw[0, 2:5], tiny.truth["a1"])


def test_more_volumes_than_memory_may_hold_are_refused_before_they_are_read(tiny):
    manifest = load_contract(DatasetManifest, tiny.dataset)
    rule = PatchRule(size_shw=(4, 16, 16))
    with pytest.raises(UsageError, match="scale_shw"):
        load_unlabelled_volumes(
            manifest, tiny.dataset.parent, Preprocessing(patch=rule), rule, memory_gib=1e-6
        )


@pytest.mark.parametrize(
    ("network", "preprocessing", "message"),
    [
        (VNET, {"patch": {"size_shw": [6, 16, 16]}}, "the next is 8x16x16"),
        (VNET, {}, "belong together"),
        ({}, PATCH, "belong together"),
        (VNET, {"patch": {"size_shw": [4, 4, 4]}}, "make a side 8"),
        (SAM2, {"size_hw": [64, 64], "intensity": {"kind": "zscore"}}, "0 to 1 for network sam2"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_with_the_remedy(
    network, preprocessing, message, tiny_config
):
    with pytest.raises(ValidationError, match=message):
        tiny_config(network=network, preprocessing=preprocessing)


def test_a_method_without_a_3d_form_says_so(tiny, tiny_config, tmp_path):
    config = tiny_config(method="sss", network=VNET, preprocessing=PATCH)
    with pytest.raises(
        UsageError, match=r"cannot train a 3-D network\.\n  where: train\.network\.dim"
    ):
        stage.run(config, tiny.dataset, tmp_path, masks=[tiny.masks])


@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "ua_mt"])
def test_a_3d_run_learns_from_patches_and_resumes_bit_equal(method, tiny, tiny_config, tmp_path):
    config = tiny_config(
        method=method,
        network=VNET,
        preprocessing=PATCH,
        foreground_probability=0.5,
        checkpoint_every_steps=4,
        keep_last=9,
    )
    record = stage.run(config, tiny.dataset, tmp_path / "whole")
    assert "validation_dice" in record.metrics
    halted = tmp_path / "halted"
    stage.run(config, tiny.dataset, halted)
    for name in ("run.json", "checkpoints/step_00000006/MANIFEST.json"):
        (halted / name).unlink()
    stage.run(config, tiny.dataset, halted)
    whole, again = (load_model(tmp_path / name / "model") for name in ("whole", "halted"))
    pairs = zip(whole.net.state_dict().values(), again.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_3d_model_is_evaluated_with_pictures_and_another_window(tiny, tiny_config, tmp_path):
    config = tiny_config(network=VNET, preprocessing=PATCH)
    stage.run(config, tiny.dataset, tmp_path / "run")
    window = SlidingWindow(stride_shw=(1, 4, 4), weights="uniform")
    summary = evaluate_stage.run(
        EvaluateConfig(window=window, bootstrap_resamples=100, permutation_flips=100),
        tiny.dataset,
        {"vnet": tmp_path / "run" / "model"},
        tmp_path / "evaluation",
    )
    assert summary.cases == 1
    assert summary.overlays
    assert (tmp_path / "evaluation" / "report.html").stat().st_size > 1000
