"""In-loop SSS: clips, prompts that move with the view, who gets gradients, presets, resuming."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Generator

from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.prompts import ObjectPrompts, SlicePrompt
from sssflow.errors import InterruptedRun, UsageError
from sssflow.storage.contracts import load_contract
from sssflow.training import in_loop, stage
from sssflow.training.clips import as_clips, carry_prompts, clip_indices, labelled_clips
from sssflow.training.config import AugmentationConfig, CutMixConfig, TrainConfig, WeakConfig
from sssflow.training.data import LabelledBatch
from sssflow.training.in_loop_config import FRAGMENT_KEYS, SssInLoopConfig
from sssflow.training.loop import batch_of, train_step
from sssflow.training.methods.streams import PseudoLabel, WeakView, make_strong
from sssflow.training.views import Geometry, weak_geometry

CASES = ("a",) * 5 + ("b",) * 2 + ("c",) * 4


def test_a_clip_is_a_run_of_slices_of_one_volume() -> None:
    index = clip_indices(CASES, 3, 40, 0, seed=1, stream="x").view(-1, 3)
    seen = {tuple(row) for row in index.tolist()}
    assert seen == {(0, 1, 2), (1, 2, 3), (2, 3, 4), (5, 6, 6), (7, 8, 9), (8, 9, 10)}


def test_every_place_is_read_once_before_any_is_read_twice() -> None:
    epoch = torch.cat(
        [clip_indices(CASES, 3, 2, step, seed=1, stream="x") for step in range(3)]
    ).view(-1, 3)
    assert len({tuple(row) for row in epoch.tolist()}) == 6


def test_slices_of_a_clip_share_one_geometry_and_clips_do_not(tiny_config) -> None:
    one = torch.rand(1, 1, 16, 16, generator=Generator().manual_seed(0))
    image = one.expand(6, 1, 16, 16)
    label = (one[:, 0] > 0.5).to(torch.uint8).expand(6, 16, 16)
    config = tiny_config().augmentation.model_copy(update={"labelled_strong_probability": 0.0})
    moved, marks = labelled_clips(
        LabelledBatch(image, label, ("a",) * 6), 3, config, Generator().manual_seed(1)
    )
    assert moved.shape == marks.shape == (2, 3, 16, 16)
    for clip in range(2):
        assert bool((moved[clip] == moved[clip, :1]).all())
        assert bool((marks[clip] == marks[clip, :1]).all())
    assert not torch.equal(moved[0], moved[1])


def prompt(box, point) -> ObjectPrompts:
    return ObjectPrompts(
        class_index=1,
        continuity=1.0,
        window_start=0,
        window_length=1,
        accepted=True,
        component_voxels=4,
        slices=(
            SlicePrompt(slice_index=0, box_xyxy_px=box, points_xy_px=(point,), point_labels=(1,)),
        ),
    )


def grid_of(matrix, size=(8, 10)):
    theta = torch.tensor([matrix], dtype=torch.float32)
    return torch.nn.functional.affine_grid(theta, [1, 1, *size], align_corners=False)[0]


BOX, POINT = (1.0, 2.0, 4.0, 3.0), (2.0, 3.0)


@pytest.mark.parametrize(
    ("matrix", "size", "box", "point"),
    [
        # Eight rows, ten columns; as it is.
        ([[1, 0, 0], [0, 1, 0]], (8, 10), BOX, POINT),
        # Left and right: x becomes 9 - x.
        ([[-1, 0, 0], [0, 1, 0]], (8, 10), (5.0, 2.0, 8.0, 3.0), (7.0, 3.0)),
        # Upside down: y becomes 7 - y.
        ([[1, 0, 0], [0, -1, 0]], (8, 10), (1.0, 4.0, 4.0, 5.0), (2.0, 4.0)),
        # A quarter turn of a square of eight: the view's (x, y) reads (y, 7 - x).
        ([[0, 1, 0], [-1, 0, 0]], (8, 8), (4.0, 1.0, 5.0, 4.0), (4.0, 2.0)),
        # Two pixels to the right of the source: the left part of the box leaves the view.
        ([[1, 0, 0.4], [0, 1, 0]], (8, 10), (0.0, 2.0, 2.0, 3.0), (0.0, 3.0)),
    ],
    ids=["identity", "mirror", "upside down", "quarter turn", "crop"],
)
def test_flip_turn_or_crop_a_view_and_its_box_and_point_move_with_it(
    matrix, size, box, point
) -> None:
    (moved,) = carry_prompts([prompt(BOX, POINT)], grid_of(matrix, size))
    assert moved.slices[0].box_xyxy_px == box
    assert moved.slices[0].points_xy_px == (point,)
    assert moved.class_index == 1


def test_what_the_view_does_not_show_is_not_prompted() -> None:
    away = grid_of([[1, 0, 1.2], [0, 1, 0]])  # six pixels to the right
    assert carry_prompts([prompt(BOX, POINT)], away) == ()
    part = grid_of([[1, 0, 0.8], [0, 1, 0]])  # four: the last column of the box is left
    (moved,) = carry_prompts([prompt(BOX, POINT)], part)
    assert moved.slices[0].box_xyxy_px == (0.0, 2.0, 0.0, 3.0)
    assert moved.slices[0].points_xy_px == ()


def test_a_carried_box_holds_the_moved_object_under_every_weak_view() -> None:
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    label[0, 10:20, 8:22] = 1
    item = prompt((8.0, 10.0, 21.0, 19.0), (14.0, 14.0))
    for seed in range(20):
        geometry = weak_geometry((1, 32, 32), WeakConfig(), Generator().manual_seed(seed))
        ys, xs = torch.nonzero(geometry.label(label)[0], as_tuple=True)
        (moved,) = carry_prompts([item], geometry.grid_bhwg[0])
        x0, y0, x1, y1 = moved.slices[0].box_xyxy_px
        assert max(abs(x0 - xs.min()), abs(x1 - xs.max())) <= 1, seed
        assert max(abs(y0 - ys.min()), abs(y1 - ys.max())) <= 1, seed


def run_of(tiny, config: TrainConfig):
    manifest = load_contract(DatasetManifest, tiny.dataset)
    run = stage.prepare(config, manifest, tiny.dataset.parent, tiny.dataset.parent)
    run.method.train_mode()
    return run


def terms_of(run, step: int = 1):
    return run.method.step(batch_of(run, step), step, Generator().manual_seed(0))


def moved_parts(run, term: torch.Tensor) -> set[str]:
    run.method.modules.zero_grad(set_to_none=True)
    term.backward()
    net = run.method.net
    parts = {
        "encoder": net.sam.image_encoder,
        "coarse head": net.coarse,
        "prompt encoder": net.sam.sam_prompt_encoder,
        "decoder": net.sam.sam_mask_decoder,
        "memory attention": net.sam.memory_attention,
        "memory encoder": net.sam.memory_encoder,
    }
    return {
        name
        for name, part in parts.items()
        if any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())
    }


PROMPTED = {"encoder", "prompt encoder", "decoder", "memory attention", "memory encoder"}


@pytest.mark.parametrize(
    ("changes", "term", "parts"),
    [
        ({}, "coarse", {"encoder", "coarse head"}),
        ({}, "prompted", PROMPTED),
        ({}, "unlabelled_coarse", {"encoder"}),
        ({"coarse_head_unlabelled": "trained"}, "unlabelled_coarse", {"encoder", "coarse head"}),
        ({}, "unlabelled_prompted", PROMPTED),
        (
            {"unlabelled_encoder_grad": False, "unlabelled_on": "decoder"},
            "unlabelled_prompted",
            PROMPTED - {"encoder"},
        ),
        ({"memory": "none"}, "unlabelled_prompted", {"encoder", "prompt encoder", "decoder"}),
        ({"labelled_loss": "bce_dice"}, "prompted", PROMPTED),
    ],
)
def test_each_term_moves_the_parts_that_it_should(changes, term, parts, tiny, tiny_config) -> None:
    config = tiny_config(method="sss_in_loop")
    settings = config.sss_in_loop.model_copy(update=changes)
    run = run_of(tiny, config.model_copy(update={"sss_in_loop": settings}))
    terms = terms_of(run).terms
    assert moved_parts(run, terms[term]) == parts
    assert all(bool(torch.isfinite(value)) for value in terms.values())
    teacher = run.method.teacher
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "fragment"},
        {"dfe_pair": "strong_strong", "memory": "temporal"},
        {"feature_perturbation": "both", "unlabelled_on": "coarse"},
        {"feature_perturbation": "none", "prompts_from": "scan"},
    ],
)
def test_every_switch_trains_a_finite_step(changes, tiny, tiny_config) -> None:
    base = tiny_config(method="sss_in_loop")
    given = {"clip_slices": 3, "dfe_width": 8, "memory_draws": 1, **changes}
    config = base.model_copy(update={"sss_in_loop": SssInLoopConfig.model_validate(given)})
    run = run_of(tiny, config)
    before = [p.detach().clone() for p in run.method.student.parameters()]
    _, loss = train_step(run, 0)
    assert loss - loss == 0
    assert any(
        not torch.equal(a, b) for a, b in zip(before, run.method.student.parameters(), strict=True)
    )
    assert (run.method.teacher is None) == (changes.get("preset") == "fragment")


def test_a_coarse_term_that_could_move_nothing_is_refused() -> None:
    frozen = {"unlabelled_encoder_grad": False}
    with pytest.raises(ValidationError, match="unlabelled_on: decoder"):
        SssInLoopConfig.model_validate(frozen)
    SssInLoopConfig.model_validate({**frozen, "unlabelled_on": "decoder"})
    SssInLoopConfig.model_validate({**frozen, "coarse_head_unlabelled": "trained"})


def test_a_pasted_class_covers_all_slices_of_its_clip(tiny, tiny_config) -> None:
    label = torch.zeros(2, 3, 4, 4, dtype=torch.long)
    label[0, 1, 2] = 1
    pseudo = PseudoLabel(label, torch.ones_like(label, dtype=torch.bool))
    config = AugmentationConfig(cutmix=CutMixConfig(probability=0.0), class_paste_probability=1.0)
    weak = WeakView(torch.rand(2, 3, 4, 4), None, None)
    view = make_strong(weak, pseudo, config, Generator().manual_seed(0))
    column = torch.zeros(2, 4, 4, dtype=torch.bool)
    column[1, 2] = True  # its partner shows the class there, on one slice
    assert torch.equal(view.boxes_bhw, column)
    assert torch.equal(view.label_bhw[1], label[0])
    settings = tiny_config(method="sss_in_loop", augmentation={"class_paste_probability": 1.0})
    _, loss = train_step(run_of(tiny, settings), 1)
    assert loss - loss == 0


def test_classes_go_by_number_in_the_loop_and_a_name_is_refused_before_it(
    tiny, tiny_config
) -> None:
    config = tiny_config(method="sss_in_loop")

    def with_tau(key: str) -> TrainConfig:
        pcsw = config.sss_in_loop.pcsw.model_copy(update={"tau_per_class": {key: 0.5}})
        settings = config.sss_in_loop.model_copy(update={"pcsw": pcsw})
        return config.model_copy(update={"sss_in_loop": settings})

    run_of(tiny, with_tau("2"))
    with pytest.raises(UsageError, match="tau_per_class"):
        run_of(tiny, with_tau("ring"))


def test_clips_cannot_be_drawn_by_class(tiny, tiny_config) -> None:
    with pytest.raises(UsageError, match="whole clips"):
        run_of(tiny, tiny_config(method="sss_in_loop", foreground_probability=0.3))


def test_an_empty_coarse_mask_gives_no_prompt_and_no_unlabelled_loss(tiny, tiny_config) -> None:
    run = run_of(tiny, tiny_config(method="sss_in_loop"))
    with torch.no_grad():
        run.method.target_net.coarse.body[-1].bias[0] = 100.0
    found = terms_of(run)
    assert float(found.facts["prompted"]) == 0
    assert float(found.facts["confident_share"]) == 0
    for name in ("unlabelled_coarse", "unlabelled_prompted"):
        assert float(found.terms[name].detach()) == 0
    found.total.backward()


def test_the_whole_image_is_prompted_where_the_fragment_is_asked_for(tiny, tiny_config) -> None:
    settings = SssInLoopConfig(preset="fragment")
    empty = torch.zeros(1, 3, 32, 32, dtype=torch.long)
    (objects,) = in_loop.pcsw_prompts(empty, 3, settings)
    assert [o.slices[0].box_xyxy_px for o in objects] == [(0.0, 0.0, 31.0, 31.0)] * 2
    assert in_loop.pcsw_prompts(empty, 3, SssInLoopConfig()) == [()]


def test_a_class_without_prompt_is_not_taught_as_background(tiny, tiny_config) -> None:
    """PCSW may refuse a class that the coarse masks show: its pixels must not count."""
    config = tiny_config(method="sss_in_loop")
    pcsw = config.sss_in_loop.pcsw.model_copy(update={"min_component_voxels": 10**6})
    settings = config.sss_in_loop.model_copy(update={"pcsw": pcsw})
    run = run_of(tiny, config.model_copy(update={"sss_in_loop": settings}))
    assert float(terms_of(run).facts["confident_share"]) == 0


def test_labelled_memories_enter_the_banks_and_are_emptied_in_time(tiny, tiny_config) -> None:
    config = tiny_config(method="sss_in_loop")
    settings = config.sss_in_loop.model_copy(update={"bank_clear_every": 2, "bank_capacity": 4})
    run = run_of(tiny, config.model_copy(update={"sss_in_loop": settings}))
    sizes = []
    for step in range(3):
        terms_of(run, step)
        sizes.append(len(run.method.banks.of(1)))
    assert sizes == [3, 4, 3]


def test_presets_differ_in_the_documented_keys_alone() -> None:
    ours = SssInLoopConfig().model_dump()
    theirs = SssInLoopConfig(preset="fragment").model_dump()
    assert {key for key in ours if ours[key] != theirs[key]} == {"preset", *FRAGMENT_KEYS}
    kept = SssInLoopConfig.model_validate({"preset": "fragment", "memory": "temporal"})
    assert kept.memory == "temporal"
    assert kept.pcsw.prompt_slices == "single"


def test_a_preset_changed_in_a_printed_configuration_is_refused_not_ignored() -> None:
    printed = SssInLoopConfig().model_dump()
    with pytest.raises(ValidationError, match="preset: fragment has no effect"):
        SssInLoopConfig.model_validate({**printed, "preset": "fragment"})
    ours = SssInLoopConfig(preset="fragment")
    assert SssInLoopConfig.model_validate(ours.model_dump()) == ours


def test_another_student_or_an_oblong_input_is_refused(tiny, tiny_config) -> None:
    for changes in (
        {"network": {"base_channels": 4, "levels": 3}},
        {"preprocessing": {"size_hw": [32, 64]}},
    ):
        with pytest.raises(UsageError, match="trains SAM-2 itself"):
            run_of(tiny, tiny_config(method="sss_in_loop", **changes))


@pytest.mark.slow
def test_a_resumed_run_has_the_weights_of_the_uninterrupted_one(
    tiny, tiny_config, tmp_path
) -> None:
    config = tiny_config(method="sss_in_loop", steps=3)

    def stop_after_two(progress) -> None:
        if progress.step == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    whole = stage.run(config, tiny.dataset, tmp_path / "whole")
    with pytest.raises(InterruptedRun):
        stage.run(config, tiny.dataset, tmp_path / "broken", progress=stop_after_two)
    resumed = stage.run(config, tiny.dataset, tmp_path / "broken")
    assert resumed.model.sha256 == whole.model.sha256
    one, two = (
        (tmp_path / name / "checkpoints" / "step_00000003" / "state.pt")
        for name in ("whole", "broken")
    )
    states = [torch.load(path, weights_only=True)["modules"] for path in (one, two)]
    for key, value in states[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, states[1][key]), key
    banks = [state["banks._extra_state"] for state in states]
    assert sorted(banks[0]) == sorted(banks[1]) != []
    for k in banks[0]:
        assert torch.equal(banks[0][k]["memory"], banks[1][k]["memory"])


@pytest.mark.slow
def test_official_sizes_train_in_the_loop_too(tiny, tiny_config) -> None:
    config = tiny_config(
        method="sss_in_loop",
        network={"name": "sam2", "sam2": {"size": "tiny", "weights": "random"}},
        preprocessing={"size_hw": [64, 64]},
    )
    run = run_of(tiny, config)
    _, loss = train_step(run, 0)
    assert loss - loss == 0


def test_one_geometry_serves_clips_and_slices() -> None:
    geometry = weak_geometry((2, 16, 16), WeakConfig(), Generator().manual_seed(0))
    clips = torch.rand(2, 3, 16, 16)
    each = Geometry(geometry.grid_bhwg.repeat_interleave(3, 0)).image(clips.reshape(6, 1, 16, 16))
    assert torch.equal(as_clips(each, 3), geometry.image(clips))
