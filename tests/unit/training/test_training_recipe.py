"""Options of the recipe that are off by default: what each does, by hand, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from sssflow.contracts.dataset import DatasetManifest
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.config import AugmentationConfig, CutMixConfig, StrongConfig, WeakConfig
from sssflow.training.loop import batch_of, train_step
from sssflow.training.methods.streams import PseudoLabel, WeakView, class_region, make_strong
from sssflow.training.rare_classes import by_class, slices_showing
from sssflow.training.views import weak_geometry


def prepared(config, tiny):
    manifest = load_contract(DatasetManifest, tiny.dataset)
    run = stage.prepare(config, manifest, tiny.dataset.parent, tiny.dataset.parent)
    run.method.train_mode()
    return run


# ---- labelled slices by class


def test_slices_are_listed_under_every_class_that_they_show():
    label = torch.zeros(4, 2, 2, dtype=torch.uint8)
    label[1, 0, 0] = 1
    label[3] = torch.tensor([[1, 3], [3, 3]])
    assert [s.tolist() for s in slices_showing(label, 4)] == [[1, 3], [3]]
    assert slices_showing(torch.zeros(2, 2, 2), 4) == ()


def test_a_class_on_one_slice_is_drawn_as_often_as_one_on_all():
    showing = (torch.arange(100), torch.tensor([7]))
    drawn = by_class(torch.zeros(4000, dtype=torch.int64), showing, 1.0, seed=3)
    assert 0.45 < float((drawn == 7).float().mean()) < 0.56
    assert torch.equal(drawn, by_class(torch.zeros(4000).long(), showing, 1.0, seed=3))
    assert not torch.equal(drawn, by_class(torch.zeros(4000).long(), showing, 1.0, seed=4))


def test_the_share_says_how_many_are_replaced():
    index = torch.full((4000,), 9)
    assert torch.equal(by_class(index, (torch.tensor([7]),), 0.0, seed=0), index)
    replaced = by_class(index, (torch.tensor([7]),), 0.25, seed=0)
    assert 0.22 < float((replaced == 7).float().mean()) < 0.28


def test_batches_hold_slices_with_foreground_where_asked(tiny, tiny_config):
    config = tiny_config(foreground_probability=1.0, batch_labelled=6)
    run = prepared(config, tiny)
    run.data.labelled.label_nhw[::3] = 0  # as if one slice of three were empty
    emptied = slices_showing(run.data.labelled.label_nhw, 3)
    object.__setattr__(run.data.labelled, "showing", emptied)
    for step in range(3):
        label = batch_of(run, step).labelled.label_bhw
        assert bool((label > 0).flatten(1).any(1).all())
    plain = prepared(tiny_config(batch_labelled=6), tiny)
    plain.data.labelled.label_nhw[::3] = 0
    assert not bool((batch_of(plain, 0).labelled.label_bhw > 0).flatten(1).any(1).all())


# ---- a class of the partner's pseudo label


def test_the_region_is_the_partners_confident_class():
    label = torch.tensor([[[0, 1], [2, 2]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]])
    sure = torch.ones_like(label, dtype=torch.bool)
    sure[1] = False
    pseudo = PseudoLabel(label, sure)
    first = {str(class_region(pseudo, Generator().manual_seed(s))[2].tolist()) for s in range(40)}
    # The partner of the last sample is the first: its class 1 or its class 2, never both.
    assert first == {"[[False, True], [False, False]]", "[[False, False], [True, True]]"}
    for seed in range(5):
        region = class_region(pseudo, Generator().manual_seed(seed))
        assert not region[0].any(), "its partner shows background alone"
        assert not region[1].any(), "its partner is itself, and not sure"


def test_a_rare_class_is_drawn_more_often():
    label = torch.ones(1, 10, 10, dtype=torch.int64)
    label[0, 0, 0] = 2  # 1 pixel against 99
    pseudo = PseudoLabel(label, torch.ones_like(label, dtype=torch.bool))
    generator = Generator().manual_seed(0)
    rare = sum(int(class_region(pseudo, generator).sum()) == 1 for _ in range(100))
    assert rare > 90


def test_image_label_and_masks_are_pasted_alike():
    label = torch.randint(0, 3, (4, 8, 8))
    image = label[:, None].float()  # every pixel shows its label
    off = {n: 0.0 for n in StrongConfig.model_fields if n.endswith("probability")}
    config = AugmentationConfig(
        strong=StrongConfig(**off),
        cutmix=CutMixConfig(probability=0.0),
        class_paste_probability=1.0,
    )
    pseudo = PseudoLabel(label, torch.ones_like(label, dtype=torch.bool))
    mask = image.expand(-1, 2, -1, -1)
    view = make_strong(
        WeakView(image, mask, torch.ones_like(mask)), pseudo, config, Generator().manual_seed(0)
    )
    assert view.boxes_bhw.any()
    assert not view.boxes_bhw.all()
    assert torch.allclose(view.image_bchw[:, 0], view.label_bhw.float(), atol=1e-5)
    assert torch.equal(view.mask_bfhw[:, 0], view.label_bhw.float())
    never = config.model_copy(update={"class_paste_probability": 0.0})
    plain = make_strong(WeakView(image, None, None), pseudo, never, Generator().manual_seed(0))
    assert not plain.boxes_bhw.any()


@pytest.mark.parametrize("method", ["fixmatch", "unimatch", "unimatch_v2"])
def test_every_weak_to_strong_method_trains_with_it(method, tiny, tiny_config):
    config = tiny_config(
        method=method, augmentation={"class_paste_probability": 1.0}, foreground_probability=0.5
    )
    run = prepared(config, tiny)
    _, loss = train_step(run, 1)
    assert 0 < loss < 10


# ---- SSL4MIS's either-or rule of the weak view

EITHER = WeakConfig(
    rule="either", flip_probability=1.0, rot90_probability=0.5, affine_probability=0.5,
    rotation_deg=20.0, scale=0.0, shear=0.0, translation=0.0, elastic_probability=0.0,
)  # fmt: skip


def test_a_sample_is_turned_or_rotated_and_never_both():
    count, size = 400, 9
    image = torch.rand(count, 1, size, size)
    view = weak_geometry((count, size, size), EITHER, Generator().manual_seed(0)).image(image)

    def fits(before, after):
        whole = [before.rot90(k, (1, 2)) for k in range(4)]
        whole += [b.flip(2) for b in whole]
        return [i for i, b in enumerate(whole) if torch.allclose(after, b, atol=1e-4)]

    found = [fits(b, a) for b, a in zip(image, view, strict=True)]
    same = sum(f == [0] for f in found) / count
    mirrored = sum(bool(f) and f[0] >= 4 for f in found) / count
    turned = sum(bool(f) and 1 <= f[0] < 4 for f in found)
    rotated = sum(not f for f in found) / count
    assert turned == 0, "a quarter turn comes with a flip: one of the four mirror images"
    assert 0.42 < mirrored < 0.58
    assert 0.19 < rotated < 0.31
    assert 0.19 < same < 0.31
    assert {f[0] for f in found if f and f[0] >= 4} == {4, 5, 6, 7}


def test_the_turning_half_is_not_shifted():
    config = EITHER.model_copy(
        update={"rot90_probability": 1.0, "affine_probability": 1.0, "translation": 0.5,
                "scale": 0.5, "shear": 0.5}
    )  # fmt: skip
    grid = weak_geometry((20, 6, 6), config, Generator().manual_seed(0)).grid_bhwg
    assert torch.allclose(grid.abs().amax((1, 2, 3)), torch.full((20,), 5 / 6), atol=1e-5)


# ---- an average for evaluation alone


@pytest.mark.parametrize("method", ["supervised", "fixmatch", "cps"])
def test_the_average_follows_the_student_and_changes_no_step_of_it(method, tiny, tiny_config):
    plain = prepared(tiny_config(method=method), tiny)
    averaged = prepared(tiny_config(method=method, ema_evaluation=True), tiny)
    name = next(iter(dict(plain.method.student.named_parameters())))
    seen = []
    for step in range(3):
        assert train_step(plain, step)[1] == train_step(averaged, step)[1]
        seen.append(averaged.method.student.state_dict()[name].clone())
    ours, theirs = averaged.method.student.state_dict(), plain.method.student.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # Ratios t / (t + 10): 0, then 1/11, then 2/12.
    wanted = seen[0]
    for weights, ratio in zip(seen[1:], (1 / 11, 2 / 12), strict=True):
        wanted = ratio * wanted + (1 - ratio) * weights
    assert torch.allclose(averaged.method.average.state_dict()[name], wanted, atol=1e-6)
    assert averaged.method.teacher is None
    assert plain.method.average is None
    assert not averaged.method.average.training
    shared = {id(p) for p in averaged.method.trainable()}
    assert not shared & {id(p) for p in averaged.method.average.parameters()}


def test_a_method_with_a_teacher_keeps_no_second_average(tiny, tiny_config):
    run = prepared(tiny_config(method="mean_teacher", ema_evaluation=True), tiny)
    assert run.method.average is run.method.teacher
    assert "average" not in run.method.modules


def test_the_average_is_what_is_saved_and_survives_a_resumption(tiny, tiny_config, tmp_path):
    config = tiny_config(method="supervised", steps=4, eval_every=2, ema_evaluation=True)
    record = stage.run(config, tiny.dataset, tmp_path / "whole")
    assert "weights: ema" in record.selection

    class StopError(Exception):
        """Stands for whatever ends a process."""

    def stop_after_two(now):
        if now.step == 3:
            raise StopError

    parts = config.model_copy(update={"checkpoint_every_steps": 2})
    with pytest.raises(StopError):
        stage.run(parts, tiny.dataset, tmp_path / "parts", progress=stop_after_two)
    stage.run(parts, tiny.dataset, tmp_path / "parts")
    files = [tmp_path / n / "model" / "weights.safetensors" for n in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
