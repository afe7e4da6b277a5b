"""The formula of each method on tensors small enough to compute by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from sssflow.contracts.dataset import DatasetManifest
from sssflow.errors import UsageError
from sssflow.networks.registry import build_network
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.discriminator import Discriminator, origin_loss
from sssflow.training.loop import train_step
from sssflow.training.losses import consistency_loss, pseudo_label_loss, supervised_loss
from sssflow.training.methods.base import SeenUnlabelled
from sssflow.training.methods.bcp import largest_pieces, outside_box, region_loss
from sssflow.training.methods.registry import build_method
from sssflow.training.methods.streams import WeakView, channel_dropout
from sssflow.training.uncertainty import entropy, entropy_limit, monte_carlo


def prepared(config, tiny):
    manifest = load_contract(DatasetManifest, tiny.dataset)
    run = stage.prepare(config, manifest, tiny.dataset.parent, tiny.dataset.parent)
    run.method.train_mode()
    return run


def batch_of_first_step(run):
    from sssflow.training.data import read_batch

    config = run.config
    return read_batch(
        run.data,
        0,
        labelled=config.batch_labelled,
        unlabelled=config.batch_unlabelled,
        seed=config.seed,
    )


def test_the_entropy_of_two_equal_classes_is_ln_2_and_of_a_sure_one_zero():
    probability = torch.tensor([[[[0.5, 1.0]], [[0.5, 0.0]]]])
    found = entropy(probability)[0, 0].tolist()
    assert found == pytest.approx([math.log(2), 0.0], abs=1e-5)
    assert entropy_limit(2, 0.75) == pytest.approx(0.75 * math.log(2))
    assert entropy_limit(4, 1.0) == pytest.approx(math.log(4))


def test_consistency_is_the_mean_over_certain_pixels_alone():
    # Student 0.5/0.5 everywhere; teacher 1/0 (distance 0.25) and 0.5/0.5 (distance 0).
    logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    teacher = torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]]]])
    assert float(consistency_loss(logits.detach(), teacher)) == pytest.approx(0.125)
    first = torch.tensor([[[True, False]]])
    assert float(consistency_loss(logits.detach(), teacher, first)) == pytest.approx(0.25)
    nobody = consistency_loss(logits, teacher, torch.zeros(1, 1, 2, dtype=torch.bool))
    nobody.backward()
    assert float(nobody.detach()) == 0.0
    assert float(logits.grad.abs().max()) == 0.0


def test_ua_mt_counts_a_pixel_below_the_threshold_that_rises_over_the_run(tiny, tiny_config):
    settings = {"passes": 2, "noise_std": 0.0, "consistency_weight": 1.0, "ramp_share": 0.0}
    method = prepared(tiny_config(method="ua_mt", ua_mt=settings, steps=10), tiny).method
    assert method.entropy_share(0) == pytest.approx(0.75 + 0.25 * math.exp(-5))
    assert method.entropy_share(5) == pytest.approx(0.75 + 0.25 * math.exp(-1.25))
    assert method.entropy_share(10) == pytest.approx(1.0)

    class Sure(torch.nn.Module):
        """Probability 0.9 for class 0 in the left column, equal shares in the right one."""

        def forward(self, image):
            logits = torch.zeros(1, 2, 1, 2)
            logits[0, 0, 0, 0] = math.log(9)
            return logits

    method.ema = Sure()
    weak = WeakView(torch.zeros(1, 1, 1, 2), None, None)
    target = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    seen = SeenUnlabelled(weak, torch.zeros(1, 2, 1, 2), target)
    terms = method.consistency(seen, 0, Generator().manual_seed(0))
    # Left: entropy 0.325 < 0.7517 ln 2 = 0.521, distance 0.25. Right: ln 2, not counted.
    assert float(terms.facts["certain_share"]) == 0.5
    assert float(terms.terms["consistency"]) == pytest.approx(0.25)


def test_repeated_predictions_differ_by_dropout_and_their_mean_is_a_distribution():
    net = torch.nn.Sequential(torch.nn.Dropout(0.5)).eval()
    image = torch.ones(1, 2, 8, 8)
    sure = {"noise_std": 0.0, "generator": Generator().manual_seed(0)}
    torch.manual_seed(0)
    once = monte_carlo(net, image, passes=1, **sure)
    often = monte_carlo(net, image, passes=64, **sure)
    assert once[0, 0].unique().numel() == 3  # both dropped or both kept, or one of the two
    assert torch.allclose(often.sum(1), torch.ones(1, 8, 8))
    assert float((often - 0.5).abs().max()) < 0.25
    assert not net[0].training


def test_cps_learns_the_other_nets_arg_max_and_no_gradient_crosses(tiny, tiny_config):
    settings = {"cross_weight": 1.0, "ramp_share": 0.0}
    off = {"flip_probability": 0, "rot90_probability": 0, "affine_probability": 0,
           "elastic_probability": 0}  # fmt: skip
    still = tiny_config(
        method="cps", cps=settings, network={"base_channels": 4, "levels": 3, "dropout": 0.0},
        augmentation={"weak": off},
    )  # fmt: skip
    run = prepared(still, tiny)
    batch = batch_of_first_step(run)
    terms = run.method.step(batch, 0, Generator().manual_seed(0))
    image = batch.unlabelled.image_bchw
    ours, others = run.method.student(image), run.method.second(image)
    expected = torch.nn.functional.cross_entropy(ours, others.argmax(1))
    assert float(terms.terms["cross"].detach()) == pytest.approx(expected.item(), rel=1e-4)
    terms.terms["cross"].backward(retain_graph=True)
    assert all(p.grad is None for p in run.method.second.parameters())
    run.method.modules.zero_grad(set_to_none=True)
    terms.beside["second_cross"].backward()
    assert all(p.grad is None for p in run.method.student.parameters())
    first = next(run.method.student.parameters())
    assert not torch.equal(first, next(run.method.second.parameters()))


def test_fixmatch_divides_the_confident_pixels_cross_entropy_by_all_pixels():
    # Two pixels at 0.9 for class 0; one confident, labelled 0; the other not.
    logits = torch.tensor([[[[math.log(9), math.log(9)]], [[0.0, 0.0]]]])
    label = torch.zeros(1, 1, 2, dtype=torch.long)
    confident = torch.tensor([[[True, False]]])
    found = pseudo_label_loss(logits, label, confident, kind="ce")
    assert float(found) == pytest.approx(-math.log(0.9) / 2, rel=1e-5)


@pytest.mark.parametrize(("method", "ratio"), [("fixmatch", 1.0), ("unimatch", 0.5)])
def test_the_labelled_term_has_the_papers_factor(method, ratio, tiny, tiny_config):
    totals = {}
    for name in (method, "supervised"):
        run = prepared(tiny_config(method=name, network={
            "base_channels": 4, "levels": 3, "dropout": 0.0}), tiny)  # fmt: skip
        terms = run.method.step(batch_of_first_step(run), 0, Generator().manual_seed(0))
        totals[name] = float(terms.terms["labelled"].detach())
    assert totals[method] == pytest.approx(ratio * totals["supervised"], rel=1e-5)


def test_unimatch_weighs_each_strong_view_a_quarter_and_the_features_a_half(
    tiny, tiny_config, monkeypatch
):
    from sssflow.training.methods import unimatch

    values = iter([1.0, 10.0, 100.0])
    monkeypatch.setattr(
        unimatch, "pseudo_label_loss", lambda *_args, **_kind: torch.tensor(next(values))
    )
    run = prepared(tiny_config(method="unimatch"), tiny)
    terms = run.method.step(batch_of_first_step(run), 0, Generator().manual_seed(0)).terms
    # (0.25 * 1 + 0.25 * 10 + 0.5 * 100) / 2, first and second view, then features.
    assert float(terms["strong_views"]) == pytest.approx(2.75 / 2)
    assert float(terms["features"]) == pytest.approx(50.0 / 2)


def test_channel_dropout_takes_whole_channels_and_keeps_the_mean():
    features = [torch.ones(64, 8, 2, 2), torch.ones(64, 16, 1, 1, 1)]
    for level in channel_dropout(features, 0.5, Generator().manual_seed(0)):
        per_channel = level.flatten(2)
        assert set(level.unique().tolist()) == {0.0, 2.0}
        assert torch.equal(per_channel.amin(2), per_channel.amax(2))
        assert float(level.mean()) == pytest.approx(1.0, abs=0.15)


def test_the_box_of_bcp_has_two_thirds_of_every_side():
    for size, box in (((9, 12), 6 * 8), ((9, 12, 6), 6 * 8 * 4)):
        keep = outside_box(size, 2 / 3, Generator().manual_seed(1))
        assert keep.shape == size
        assert int((~keep).sum()) == box
        for axis in range(len(size)):
            others = tuple(a for a in range(len(size)) if a != axis)
            inside = (~keep).amax(others)
            assert int(inside.sum()) == int(size[axis] * 2 / 3)


def test_a_region_is_supervised_by_its_own_label_alone():
    logits = torch.zeros(1, 2, 1, 2)
    label = torch.tensor([[[1, 0]]])
    region = torch.tensor([[True, False]])
    found = region_loss(logits, label, region)
    alone = supervised_loss(logits[..., :1], label[..., :1])
    assert float(found) == pytest.approx(float(alone), abs=1e-6)
    # Cross-entropy ln 2; Dice: class 0 absent, 1 - 0 = 1; class 1 1 - 2*.5/(.25 + 1) = 0.2.
    assert float(found) == pytest.approx((math.log(2) + (1.0 + 0.2) / 2) / 2, abs=1e-4)
    other = region_loss(logits, torch.tensor([[[1, 1]]]), region)
    assert float(other) == pytest.approx(float(found))


def test_bcp_learns_from_labelled_pairs_first_and_from_both_streams_afterwards(tiny, tiny_config):
    run = prepared(tiny_config(method="bcp", steps=8, bcp={"pretrain_share": 0.25}), tiny)
    names = [
        set(run.method.step(batch_of_first_step(run), s, Generator().manual_seed(0)).terms)
        for s in range(4)
    ]
    assert names == [{"labelled"}] * 2 + [{"labelled", "unlabelled"}] * 2


def test_the_pseudo_label_half_of_bcp_counts_alpha(tiny, tiny_config):
    found = []
    for alpha in (0.5, 1.0):
        settings = {"pretrain_share": 0.0, "unlabelled_weight": alpha}
        run = prepared(tiny_config(method="bcp", bcp=settings), tiny)
        torch.manual_seed(0)
        terms = run.method.step(batch_of_first_step(run), 0, Generator().manual_seed(0)).terms
        found.append({name: float(term.detach()) for name, term in terms.items()})
    assert found[0]["labelled"] == pytest.approx(found[1]["labelled"])
    assert 2 * found[0]["unlabelled"] == pytest.approx(found[1]["unlabelled"])


def test_the_pseudo_labels_of_bcp_do_not_follow_the_statistics_of_pasted_images(tiny, tiny_config):
    run = prepared(tiny_config(method="bcp", bcp={"pretrain_share": 0.0}), tiny)
    plain, shifted = [], []
    for found, shift in ((plain, 0.0), (shifted, 10.0)):
        for name, buffer in run.method.teacher.named_buffers():
            if name.endswith("running_mean"):
                buffer += shift
        torch.manual_seed(0)
        step = run.method.step(batch_of_first_step(run), 0, Generator().manual_seed(0))
        found += [float(step.terms["unlabelled"].detach()), float(step.facts["foreground_share"])]
    assert plain == shifted
    assert plain[1] > 0
    assert not run.method.teacher.training


def test_bcp_refuses_batches_that_have_no_equal_halves(tiny, tiny_config):
    for labelled, unlabelled in ((3, 3), (2, 4)):
        config = tiny_config(method="bcp", batch_labelled=labelled, batch_unlabelled=unlabelled)
        with pytest.raises(UsageError, match="half batches"):
            prepared(config, tiny)


def test_only_the_largest_piece_of_each_class_is_kept():
    label = torch.tensor([[[1, 0, 1, 1], [0, 0, 0, 0], [2, 0, 0, 0]], [[0] * 4] * 3])
    kept = largest_pieces(label)
    assert kept[0].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [2, 0, 0, 0]]
    assert int(kept[1].sum()) == 0


@pytest.mark.parametrize("size", [(32, 32), (16, 32, 16)])
def test_the_critic_judges_slices_and_volumes_of_any_size(size):
    critic = Discriminator(3, len(size), width=4)
    assert critic(torch.rand(2, 3, *size), torch.rand(2, 1, *size)).shape == (2, 2)


def test_the_critics_loss_asks_where_each_sample_comes_from():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])  # labelled with 3/4
    mixed = -(math.log(0.75) + math.log(0.25)) / 2
    assert float(origin_loss(logits, [True, False])) == pytest.approx(mixed)
    assert float(origin_loss(logits, [True, True])) == pytest.approx(-math.log(0.75))


def test_a_step_of_dan_moves_student_and_critic_each_by_its_own_optimiser(tiny, tiny_config):
    still = {"learning_rate": 1e-30, "weight_decay": 0.0}
    run = prepared(tiny_config(method="dan", optimiser=still), tiny)
    critic, student = run.method.discriminator, run.method.student
    before = [p.detach().clone() for p in (*critic.parameters(), *student.parameters())]
    train_step(run, 0)
    count = len(list(critic.parameters()))
    after = [*critic.parameters(), *student.parameters()]
    moved = [float((a - b).detach().abs().max()) for a, b in zip(before, after, strict=True)]
    assert max(moved[count:]) < 1e-20
    # Adam's first step is the learning rate, 1e-4, for every weight with a gradient.
    assert max(moved[:count]) == pytest.approx(1e-4, rel=0.05)


VOLUMES = {"name": "vnet", "dimensions": 3, "base_channels": 4, "levels": 3}


@pytest.mark.parametrize("method", ["dan", "semisam"])
def test_patches_that_the_critic_would_halve_away_are_refused(method, tiny_config):
    for sides, fits in (((4, 16, 16), False), ((16, 16, 16), True)):
        config = tiny_config(
            method=method, network=VOLUMES, preprocessing={"patch": {"size_shw": sides}}
        )
        on_dan = config.semisam.model_copy(update={"base": "dan"})
        config = config.model_copy(update={"semisam": on_dan})
        student = build_network(config.network, 3, seed=0)
        if fits:
            critic = build_method(student, config).discriminator
            assert critic(torch.rand(1, 3, *sides), torch.rand(1, 1, *sides)).shape == (1, 2)
        else:
            with pytest.raises(UsageError, match="halves each side") as refused:
                build_method(student, config)
            assert "found: 4 x 16 x 16" in " ".join(refused.value.describe().split())


def test_slices_of_sixteen_pixels_are_the_smallest_that_the_critic_takes(tiny_config):
    size = {"preprocessing": {"size_hw": [8, 32]}}
    config = tiny_config(method="dan", **size)
    with pytest.raises(UsageError, match="halves each side"):
        build_method(build_network(config.network, 3, seed=0), config)
