"""Names of the terms, the masks of sss, and the parts that methods share.

What no method may do is asked in test_training_honesty.py.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Generator

from sssflow.contracts.dataset import DatasetManifest, UnlabelledCase
from sssflow.contracts.masks import MaskSet
from sssflow.storage.contracts import load_contract
from sssflow.training.config import TrainConfig, WeakConfig
from sssflow.training.data import UnlabelledBatch
from sssflow.training.loop import batch_of
from sssflow.training.mask_trust import case_masks
from sssflow.training.methods.base import labelled_view
from sssflow.training.methods.registry import METHODS
from sssflow.training.methods.streams import (
    batch_statistics,
    complementary_dropout,
    join_levels,
    make_strong,
    pseudo_label,
    split_levels,
    statistics_kept,
    weak_view,
)
from sssflow.volume.packed import read_packed, write_packed

NAMES = {
    "supervised": {"labelled"},
    "mean_teacher": {"labelled", "consistency"},
    "ua_mt": {"labelled", "consistency"},
    "cps": {"labelled", "cross"},
    "fixmatch": {"labelled", "unlabelled"},
    "unimatch": {"labelled", "strong_views", "features"},
    "unimatch_v2": {"labelled", "unlabelled"},
    "bcp": {"labelled", "unlabelled"},
    "dan": {"labelled", "adversarial"},
    "semisam": {"labelled", "consistency", "semisam"},
    "sss": {"labelled", "unlabelled", "sam_masks"},
    "sss_in_loop": {
        "coarse", "prompted", "scores", "unlabelled_coarse", "unlabelled_prompted",
    },
}  # fmt: skip


def first_batch(run):
    return batch_of(run, 0)


@pytest.mark.parametrize("method", METHODS)
def test_its_terms_have_the_names_by_which_logs_know_them(method, prepared, tiny_config):
    run = prepared(tiny_config(method=method))
    terms = run.method.step(first_batch(run), 1, Generator().manual_seed(0))
    assert set(terms.terms) == NAMES[method]


@pytest.mark.parametrize("perturbation", ["dfe", "comp_dropout", "both", "none"])
def test_sss_runs_with_every_feature_perturbation(perturbation, prepared, tiny_config):
    config = tiny_config(method="sss", sss={"feature_perturbation": perturbation, "dfe_width": 8})
    run = prepared(config)
    terms = run.method.step(first_batch(run), 0, Generator().manual_seed(0))
    assert torch.isfinite(terms.total)
    assert ("dfe" in run.method.modules) == (perturbation in ("dfe", "both"))


def test_without_masks_and_perturbation_sss_is_unimatch_v2_without_dropout(prepared, tiny_config):
    plain = {"feature_perturbation": "none", "mask_weight": 0.0}
    base = {"confidence_threshold": 0.3, "dropout_share": 0.0}
    totals = []
    for method in ("unimatch_v2", "sss"):
        run = prepared(tiny_config(method=method, sss=plain, unimatch_v2=base))
        torch.manual_seed(0)
        totals.append(run.method.step(first_batch(run), 0, Generator().manual_seed(0)).total)
    assert float(totals[0].detach()) == pytest.approx(float(totals[1].detach()), rel=1e-6)


def test_an_unlabelled_case_and_batch_have_no_place_for_a_label():
    assert "label" not in UnlabelledCase.model_fields
    assert not [f.name for f in fields(UnlabelledBatch) if "label" in f.name]


def test_masks_follow_the_geometry_and_cutmix_of_their_view(prepared, tiny_config):
    run = prepared(tiny_config(method="sss", batch_unlabelled=9))
    batch = first_batch(run).unlabelled
    # The image itself as its first mask: wherever the view takes it, both must agree.
    image = (batch.image_bchw - batch.image_bchw.amin()) / 2
    batch = replace(batch, image_bchw=image, mask_bfhw=image.expand(-1, 2, -1, -1).clone())
    config = run.config.augmentation
    weak = weak_view(batch, config.weak, Generator().manual_seed(1))
    pseudo = pseudo_label(torch.randn(9, 3, 32, 32), 0.5)
    off = {n: 0.0 for n in type(config.strong).model_fields if n.endswith("probability")}
    still = config.model_copy(
        update={
            "strong": config.strong.model_copy(update=off),
            "cutmix": config.cutmix.model_copy(update={"probability": 1.0}),
        }
    )
    strong = make_strong(weak, pseudo, still, Generator().manual_seed(2))
    assert torch.allclose(strong.mask_bfhw[:, 0], strong.image_bchw[:, 0], atol=1e-5)
    assert strong.boxes_bhw.any()
    moved = torch.where(strong.boxes_bhw, pseudo.label_bhw.flip(0), pseudo.label_bhw)
    assert torch.equal(strong.label_bhw, moved)


def test_classes_that_share_a_voxel_in_the_stored_masks_keep_their_shares(prepared, tiny_config):
    """`merge` made a distribution of them; competing again would move them to the background."""
    batch = first_batch(prepared(tiny_config(method="sss"))).unlabelled
    shares = torch.tensor([0.7, 0.3])[:, None, None].expand_as(batch.mask_bfhw).clone()
    weak = weak_view(replace(batch, mask_bfhw=shares), WeakConfig(), Generator().manual_seed(0))
    assert torch.allclose(weak.mask_bfhw, shares, atol=1e-5)


def test_an_empty_mask_is_not_trusted(tiny, tiny_config, tmp_path):
    (case, *_), folder = load_contract(MaskSet, tiny.masks).cases, tiny.masks.parent
    manifest = load_contract(DatasetManifest, tiny.dataset)
    scan = next(c for c in manifest.cases if c.case_id == case.case_id)
    array = read_packed(case.probability_kshw, base=folder, shape=(2, *scan.grid.shape_shw)).copy()
    settings = tiny_config(method="sss")
    rules = (2, settings.preprocessing, settings.sss)
    _, before = case_masks(scan, (case, folder), *rules)
    array[0, 1] = 0
    stored = write_packed(tmp_path / "emptied.b2nd", array, base=tmp_path)
    emptied = case.model_copy(update={"probability_kshw": stored})
    _, after = case_masks(scan, (emptied, tmp_path), *rules)
    assert float(before[1, 0]) > 0 == float(after[1, 0])
    before[1, 0] = 0
    assert torch.equal(before, after)


def test_trust_is_the_predicted_iou_where_sam_segmented_and_zero_elsewhere(prepared, tiny_config):
    run = prepared(tiny_config(method="sss"))
    weight = run.data.unlabelled.mask_weight_nf.reshape(3, 3, 2)
    assert weight[0].tolist() == [
        pytest.approx([0.9, 0.9]),
        pytest.approx([0.8, 0.8]),
        [0.0, 0.0],
    ]
    strict = tiny_config(method="sss", sss={"mask_min_predicted_iou": 0.85, "dfe_width": 8})
    weight = prepared(strict).data.unlabelled.mask_weight_nf.reshape(3, 3, 2)
    assert weight[:, 1].abs().sum() == 0
    absent = tiny_config(method="sss", sss={"mask_min_object_score": 4.5, "dfe_width": 8})
    weight = prepared(absent).data.unlabelled.mask_weight_nf.reshape(3, 3, 2)
    assert weight[:, 0].min() > 0
    assert weight[:, 1].abs().sum() == 0


@pytest.mark.parametrize("method", ["mean_teacher", "ua_mt"])
def test_the_noise_is_on_the_view_that_it_is_asked_for(method, prepared, tiny_config):
    for noise_on in ("student", "teacher"):
        run = prepared(tiny_config(method=method, **{method: {"noise_on": noise_on}}))
        seen = {"student": [], "teacher": []}
        for name, images in seen.items():
            run.method.modules[name].register_forward_pre_hook(
                lambda _, args, images=images: images.append(args[0])
            )
        batch = first_batch(run)
        run.method.step(batch, 1, Generator().manual_seed(0))
        clean = weak_view(
            batch.unlabelled, run.config.augmentation.weak, labelled_draws_done(run, batch)
        ).image_bchw
        quiet = "student" if noise_on == "teacher" else "teacher"
        assert torch.equal(seen[quiet][0], clean)
        apart = (seen[noise_on][0] - clean).abs()
        assert 0 < float(apart.max()) <= 0.2 + 1e-6


def labelled_draws_done(run, batch):
    """A generator as the step has it after the labelled view."""
    generator = Generator().manual_seed(0)
    labelled_view(batch.labelled, run.config.augmentation, generator)
    return generator


def test_complementary_dropout_masks_add_up_and_exempt_pairs_are_whole():
    ones = [torch.ones(64, 6, 2, 2), torch.ones(64, 12, 1, 1)]
    first, second = complementary_dropout(ones, ones, 0.5, Generator().manual_seed(0))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one + two, 2 * torch.ones_like(one))
        assert set(one.unique().tolist()) == {0.0, 1.0, 2.0}
    whole_fine = (first[0] == 1).flatten(1).all(1)
    whole_coarse = (first[1] == 1).flatten(1).all(1)
    assert torch.equal(whole_fine, whole_coarse)
    assert 0.3 < float(whole_fine.float().mean()) < 0.7


def test_perturbed_slices_do_not_move_the_running_statistics():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(1)).train()
    x = torch.randn(4, 1, 3, 3) * 3 + 5
    with statistics_kept(net):
        inside = net(x)
    assert float(net[0].running_mean) == 0.0
    assert abs(float(inside.detach().mean())) < 1e-5
    net(x)
    assert float(net[0].running_mean) == pytest.approx(0.1 * float(x.mean()), rel=1e-4)


def test_a_teacher_can_normalise_by_the_batch_without_dropout_and_without_a_trace():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Dropout(0.5)).eval()
    net[0].running_mean.fill_(100.0)
    x = torch.randn(4, 1, 3, 3, generator=Generator().manual_seed(0)) * 3 + 5
    with torch.no_grad(), batch_statistics(net):
        inside = net(x)
    assert float(inside.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(inside.std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    assert bool((inside != 0).all())
    assert not any(module.training for module in net.modules())
    assert float(net[0].running_mean) == 100.0
    assert net[0].momentum == 0.1


def test_splitting_and_joining_levels_are_inverse():
    levels = [torch.randn(6, 2, 4, 4), torch.randn(6, 3, 2, 2)]
    parts = split_levels(levels, [1, 2, 3])
    assert [len(part[0]) for part in parts] == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(join_levels(parts), levels, strict=True))


def test_a_size_that_the_network_cannot_halve_is_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        TrainConfig.model_validate({"preprocessing": {"size_hw": [100, 128]}})
