"""SemiSAM: what reaches the student, what does not, guards, geometry, resumption."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from semisam_cases import LOOSE, Recorder, by_grey, prepared, step

from sssflow.contracts.run import RunRecord
from sssflow.errors import DataError, InterruptedRun, UsageError
from sssflow.sam.config import GeneralistConfig
from sssflow.sam.generalist import load_generalist
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.config import TrainConfig
from sssflow.training.generalist_target import Specialist, ask, certainty, regions_of
from sssflow.training.losses import mask_target
from sssflow.training.methods.dan import Dan
from sssflow.training.methods.mean_teacher import MeanTeacher
from sssflow.training.methods.semisam import SemiSam
from sssflow.training.methods.ua_mt import UaMt
from sssflow.training.semisam_config import SemiSamConfig
from sssflow.training.views import Geometry

BASES = ("mean_teacher", "ua_mt", "dan")
PROMPTS = ("point", "box", "mask", "unc")


def two_classes(size=24):
    """One slice with class 1 in the upper left and class 2 in the lower right, and surety."""
    label = np.zeros((size, size), np.int64)
    label[3:10, 3:9] = 1
    label[13:21, 12:20] = 2
    one_hot = np.stack([label == k for k in range(3)]).astype(np.float32)
    probability = torch.from_numpy(0.91 * one_hot + 0.03)[None]
    return label, Specialist(probability, torch.ones(1, size, size, dtype=torch.bool))


@pytest.mark.parametrize(
    ("base", "parent"), [("mean_teacher", MeanTeacher), ("ua_mt", UaMt), ("dan", Dan)]
)
def test_it_is_its_base_and_one_term_more(base, parent, tiny, tiny_config):
    plain = prepared(tiny_config(method=base), tiny, None)
    plugged = prepared(tiny_config(method="semisam", semisam={"base": base}), tiny, Recorder())
    assert isinstance(plugged.method, SemiSam)
    assert isinstance(plugged.method, parent)
    one, other = step(plain), step(plugged)
    assert set(other.terms) == set(one.terms) | {"semisam"}
    for name, value in one.terms.items():
        assert float(other.terms[name].detach()) == float(value.detach())
    assert set(plugged.method.modules) == set(plain.method.modules)


@pytest.mark.usefixtures("seeing_specialist")
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("base", BASES)
def test_its_term_alone_reaches_the_student_and_never_the_generalist(
    base, prompts, tiny, tiny_config, nano
):
    config = tiny_config(method="semisam", semisam={**LOOSE, "base": base, "prompts": prompts})
    run = prepared(config, tiny, nano)
    before = {k: v.clone() for k, v in nano._model.state_dict().items()}
    terms = step(run)
    assert float(sum(v for k, v in terms.facts.items() if k.startswith("accepted"))) > 0
    terms.terms["semisam"].backward()
    first = next(run.method.student.parameters())
    assert float(first.grad.abs().max()) > 1e-8
    assert all(p.grad is None for p in nano._model.parameters())
    assert all(torch.equal(v, nano._model.state_dict()[k]) for k, v in before.items())
    others = [m for name, m in run.method.modules.items() if name != "student"]
    assert all(p.grad is None for m in others for p in m.parameters())


def test_a_whole_run_leaves_the_generalist_as_it_was(tiny, tiny_config, tmp_path, nano):
    before = {k: v.clone() for k, v in nano._model.state_dict().items()}
    config = tiny_config(method="semisam", semisam=LOOSE)
    record = stage.run(config, tiny.dataset, tmp_path, generalist=nano)
    assert all(torch.equal(v, nano._model.state_dict()[k]) for k, v in before.items())
    assert not any(m.training for m in nano._model.modules())
    assert record.inputs["generalist"] == nano.digest
    assert record.notes == ("Frozen generalist beside the labels: SAM-2 nano, input 64.",)


def test_the_weight_falls_and_the_loss_is_the_mask_loss_by_hand():
    _, specialist = two_classes()
    recorder = Recorder()
    rng = np.random.default_rng(0)
    target = ask(recorder, torch.zeros(1, 1, 24, 24), specialist, SemiSamConfig(), rng)
    # Two disjoint objects answered with +-10: sigmoid(10) is kept 1/510 away from 1.
    p = 1 - 1 / 510
    odds, small = p / (1 - p), (1 / 510) / (1 - 1 / 510)
    assert float(target.mask_bfhw[0, 0, 5, 5]) == pytest.approx(odds / (1 + odds + small))
    assert float(target.mask_bfhw[0, 1, 5, 5]) == pytest.approx(
        small / (1 + odds + small), rel=1e-3
    )
    assert bool((target.weight_bfhw == 0.9).all())
    assert target.accepted_bf.tolist() == [[True, True]]
    assert float(target.agreement) == 1.0
    assert float(target.area_ratio) == 1.0
    assert target.hard_bhw[0, 5, 5] == 1
    assert target.hard_bhw[0, 15, 15] == 2
    assert target.hard_bhw[0, 0, 0] == 0


def test_the_weight_of_the_term_falls_from_its_largest(tiny, tiny_config):
    run = prepared(tiny_config(method="semisam", semisam=LOOSE, steps=100), tiny, Recorder())
    # Falling ramp over 100 steps: 0.5 at 0, 0.5 exp(-5/4) in the middle, 0.5 exp(-5) at the end.
    found = [float(step(run, number).facts["semisam_weight"]) for number in (0, 50, 100)]
    assert found == pytest.approx([0.5, 0.5 * math.exp(-1.25), 0.5 * math.exp(-5)])


@pytest.mark.parametrize(
    ("changes", "answers", "iou"),
    [
        ({}, None, 0.4),
        ({"area_ratio": 1.5}, [np.full((24, 24), 9.0)] * 2, 0.9),
        ({"area_ratio": 1e6}, [np.full((24, 24), -9.0)] * 2, 0.9),
    ],
    ids=["rated low by the generalist", "flooding the image", "empty"],
)
def test_answers_that_fail_a_guard_are_told_but_weigh_nothing(changes, answers, iou):
    _, specialist = two_classes()
    settings, rng = SemiSamConfig(**changes), np.random.default_rng(0)
    target = ask(Recorder(answers, iou), torch.zeros(1, 1, 24, 24), specialist, settings, rng)
    assert target.prompted_bf.tolist() == [[True, True]]
    assert target.accepted_bf.tolist() == [[False, False]]
    assert bool((target.weight_bfhw == 0).all())
    assert math.isnan(float(target.agreement))


def test_a_class_that_the_specialist_does_not_see_is_not_prompted():
    label, specialist = two_classes()
    probability = specialist.probability_bkhw.clone()
    probability[:, 0] += probability[:, 2]
    probability[:, 2] = 0
    recorder = Recorder()
    seen = Specialist(probability, specialist.reliable_bhw)
    settings, rng = SemiSamConfig(), np.random.default_rng(0)
    target = ask(recorder, torch.zeros(1, 1, 24, 24), seen, settings, rng)
    ((_, regions),) = recorder.asked
    assert len(regions) == 1
    assert target.prompted_bf.tolist() == [[True, False]]
    assert bool((target.weight_bfhw[:, 1] == 0).all())
    assert (label[tuple(regions[0].points_pd[0])], regions[0].labels_p[0]) == (1, 1)


def test_an_empty_prediction_asks_nothing_and_gives_a_loss_of_zero_with_a_gradient(
    tiny, tiny_config
):
    recorder = Recorder()
    strict = {**LOOSE, "points": {"min_pixels": 10**6}}
    run = prepared(tiny_config(method="semisam", semisam=strict), tiny, recorder)
    terms = step(run)
    assert recorder.asked[0][1] == []
    assert float(terms.terms["semisam"].detach()) == 0.0
    terms.terms["semisam"].backward()
    assert next(run.method.student.parameters()).grad is not None
    assert torch.isfinite(terms.total)
    assert not float(terms.facts["prompted/1"])


@pytest.mark.parametrize("prompts", PROMPTS)
def test_each_kind_of_prompt_tells_what_it_says(prompts):
    label, specialist = two_classes()
    settings = SemiSamConfig(prompts=prompts, repeats=3)
    asked = regions_of(specialist, settings, np.random.default_rng(0))
    assert asked.pairs == [(0, 1), (0, 2)]
    assert len(asked.regions) == 2 * settings.draws == (6 if prompts == "unc" else 2)
    region = asked.regions[0]
    assert (len(region.points_pd) > 0) == (prompts in ("point", "unc"))
    assert (region.box_2d is not None) == (prompts == "box")
    assert (region.rough is not None) == (prompts == "mask")
    if prompts == "box":
        assert region.box_2d.tolist() == [[2, 2], [10, 9]]
    elif prompts == "mask":
        # Probability 0.94 inside, 0.03 outside.
        assert float(region.rough[5, 5]) == pytest.approx(math.log(0.94 / 0.06), rel=1e-4)
        assert float(region.rough[0, 0]) == pytest.approx(math.log(0.03 / 0.97), rel=1e-4)
    else:
        at = tuple(region.points_pd.T)
        assert ((label[at] == 1) == (region.labels_p == 1)).all()
        assert region.labels_p[0] == 1


def test_places_on_which_repeated_answers_disagree_weigh_less():
    _, specialist = two_classes()
    answers = [np.full((24, 24), -20.0) for _ in range(4)]
    for i, columns in enumerate((9, 7, 9, 7)):
        answers[i][3:10, 3:columns] = 20.0
    recorder = Recorder([*answers, *answers])
    settings, rng = SemiSamConfig(prompts="unc", area_ratio=1e6), np.random.default_rng(0)
    target = ask(recorder, torch.zeros(1, 1, 24, 24), specialist, settings, rng)
    assert float(target.weight_bfhw[0, 0, 5, 5]) == pytest.approx(0.9, abs=1e-4)
    assert float(target.weight_bfhw[0, 0, 5, 8]) == pytest.approx(0.0, abs=1e-4)
    # Entropy of 1/4 is 0.8113 bits.
    assert float(certainty(torch.tensor(0.25))) == pytest.approx(1 - 0.811278, abs=1e-5)


@pytest.mark.parametrize("kind", ["mirrored", "turned"])
def test_prompts_move_with_the_view(kind, tiny, tiny_config, monkeypatch):
    """The same slices seen through another geometry: what is asked moves with the image."""
    asked = {}
    for name in ("plain", kind):
        angle = {"plain": [[1.0, 0], [0, 1]], "mirrored": [[-1.0, 0], [0, 1]],
                 "turned": [[0, -1.0], [1, 0]]}[name]  # fmt: skip
        theta = torch.tensor([[*angle[0], 0.0], [*angle[1], 0.0]]).expand(2, 2, 3)
        grid = torch.nn.functional.affine_grid(theta, [2, 1, 32, 32], align_corners=False)
        monkeypatch.setattr(
            "sssflow.training.methods.streams.weak_geometry", lambda *_, g=grid: Geometry(g)
        )
        recorder = Recorder()
        settings = {**LOOSE, "noise_std": 0.0, "prompts": "box"}
        run = prepared(tiny_config(method="semisam", semisam=settings), tiny, recorder)
        # A specialist that reads classes off the grey values: it moves with what it is shown.
        monkeypatch.setattr(type(run.method.teacher), "forward", by_grey)
        step(run)
        asked[name] = recorder.asked[0]
        monkeypatch.undo()
    move = {"mirrored": lambda x: x[..., ::-1], "turned": lambda x: np.rot90(x, 1, (-2, -1))}[kind]
    image, moved = (asked[name][0].numpy() for name in ("plain", kind))
    assert np.allclose(moved, move(image), atol=1e-5)
    here, there = asked["plain"][1], asked[kind][1]
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        assert one.sample == other.sample
        assert (move(one.support) == other.support).all()
        low, high = other.box_2d
        inside = np.zeros_like(other.support)
        inside[low[0] : high[0] + 1, low[1] : high[1] + 1] = True
        box = np.zeros_like(inside)
        box[tuple(slice(a, b + 1) for a, b in one.box_2d.T)] = True
        assert (move(box) == inside).all()


def test_semisam_without_a_generalist_says_where_one_comes_from(tiny, tiny_config, tmp_path):
    with pytest.raises(UsageError, match="asks a generalist"):
        stage.run(tiny_config(method="semisam"), tiny.dataset, tmp_path)


@pytest.mark.parametrize("base", BASES)
def test_a_stopped_run_ends_bit_equal_to_one_that_was_not(base, tiny, tiny_config, tmp_path, nano):
    import os
    import signal

    settings = {**LOOSE, "base": base, "prompts": "unc", "repeats": 2}
    config: TrainConfig = tiny_config(method="semisam", semisam=settings)

    def stop(progress):
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = stage.run(config, tiny.dataset, tmp_path / "whole", generalist=nano)
    with pytest.raises(InterruptedRun):
        stage.run(config, tiny.dataset, tmp_path / "cut", generalist=nano, progress=stop)
    # A resumed run builds its generalist anew.
    fresh = load_generalist(GeneralistConfig(input_size=64))
    cut = stage.run(config, tiny.dataset, tmp_path / "cut", generalist=fresh)
    files = [tmp_path / n / "model" / "weights.safetensors" for n in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert cut.history == whole.history


def test_another_generalist_is_another_run(tiny, tiny_config, tmp_path, nano):
    config = tiny_config(method="semisam", semisam=LOOSE, steps=1)
    stage.run(config, tiny.dataset, tmp_path, generalist=nano)
    other = load_generalist(GeneralistConfig(input_size=96))
    with pytest.raises((UsageError, DataError)):
        stage.run(config, tiny.dataset, tmp_path, generalist=other)
    assert load_contract(RunRecord, tmp_path / "run.json").inputs["generalist"] == nano.digest


def test_a_volume_is_asked_like_a_slice():
    _, specialist = two_classes()
    volume = Specialist(
        specialist.probability_bkhw[:, :, None].expand(-1, -1, 4, -1, -1).contiguous(),
        specialist.reliable_bhw[:, None].expand(-1, 4, -1, -1).contiguous(),
    )
    recorder = Recorder()
    settings, rng = SemiSamConfig(), np.random.default_rng(0)
    target = ask(recorder, torch.zeros(1, 1, 4, 24, 24), volume, settings, rng)
    assert target.mask_bfhw.shape == (1, 2, 4, 24, 24)
    assert target.accepted_bf.all()
    assert recorder.asked[0][1][0].points_pd.shape[1] == 3
    assert float(target.mask_bfhw[0, 0, 2, 5, 5]) == pytest.approx(
        float(mask_target(torch.tensor([[[1.0], [0.0]]]))[0, 0, 0]), rel=1e-4
    )
