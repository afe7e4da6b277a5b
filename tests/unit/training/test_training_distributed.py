"""Two processes that share every batch do what one would, and are told apart where they must be."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_processes import train_plainly, validate_shared

from s3_server import free_port
from sssflow.contracts.dataset import DatasetManifest
from sssflow.errors import UnavailableError, UsageError
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.checkpoint import load_newest
from sssflow.training.distributed import ALONE, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROGRAM = Path(__file__).with_name("two_processes.py")


@dataclass(frozen=True)
class Told:
    """What each of the two processes wrote, by its number."""

    out: Path
    values: list[dict[str, Any]]
    weights: list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def told(tiny, tmp_path_factory) -> Told:
    """Both processes of `two_processes.py`, run once, side by side."""
    out, port = tmp_path_factory.mktemp("told"), str(free_port())
    both = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(tiny.dataset), str(out), port, rank],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for process in both:
        _, errors = process.communicate(timeout=800)
        assert process.returncode == 0, errors
    return Told(
        out,
        [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)],
        [load_file(out / f"{rank}.safetensors") for rank in (0, 1)],
    )


def test_halves_of_a_batch_give_the_losses_and_weights_of_the_whole(told, tiny):
    losses, weights = train_plainly(tiny.dataset, ALONE)
    assert losses[-1] < losses[0]
    for values, found in zip(told.values, told.weights, strict=True):
        assert values["losses"] == pytest.approx(losses, rel=1e-5)
        for name, value in weights.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_both_processes_hold_the_same_bits(told):
    first, second = told.weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert told.values[0]["losses"] == told.values[1]["losses"]


def test_each_process_takes_its_own_run_of_the_batch(told):
    assert [values["part"] for values in told.values] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("mean", 2.5),
        ("nan", "nan"),
        ("any", [True, False, True]),
        ("first", [1.5, 1.5, 1.5]),  # (1 + 2) / 2
        ("second", [4.0, 4.0, 4.0]),  # one process has 8, the other none
        ("unused", True),
        ("running_mean", [0.5, 0.5]),
        ("share", [5]),
    ],
)
def test_both_processes_are_told_the_same(told, what, expected):
    assert [values[what] for values in told.values] == [expected, expected]


def test_the_statistics_of_a_teacher_are_left_to_its_average(told):
    found = [values["running_mean_of_a_teacher"] for values in told.values]
    assert found == [[0.0, 0.0], [1.0, 1.0]]


def test_the_first_process_gathers_states_of_unequal_length(told):
    assert [values["gather"] for values in told.values] == [[[0], [0, 1]], []]


def test_a_resumed_run_of_two_takes_up_each_process_its_own_memories(told):
    _, state = load_newest(told.out / "cut" / "checkpoints")
    first, second = (own["banks"]["_extra_state"] for own in state["kept_apart"])
    assert first
    assert second
    assert not torch.equal(first["1"]["embedding"], second["1"]["embedding"])
    weights = [told.out / name / "model" / "weights.safetensors" for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_processes_that_share_the_validation_give_the_first_the_figures_of_one(told, tiny):
    cases, alone = validate_shared(tiny.dataset, ALONE)
    assert [values["validation"][0] for values in told.values] == [cases[0::2], cases[1::2]]
    assert set(alone) == {"dice", "dice_disc", "dice_ring"}
    first, second = (values["validation"][1] for values in told.values)
    assert first == pytest.approx(alone, rel=1e-6)
    assert second is None


def test_a_validation_that_one_process_must_leave_is_left_by_all(told):
    assert [values["stopped_validation"] for values in told.values] == [[None, None]] * 2


def prepare(tiny, config, world):
    manifest = load_contract(DatasetManifest, tiny.dataset)
    return stage.prepare(config, manifest, tiny.dataset.parent, tiny.dataset.parent, world=world)


@pytest.mark.parametrize(
    ("changes", "key", "nearest"),
    [
        ({"batch_labelled": 5}, "batch_labelled", "4 or 6"),
        ({"method": "mean_teacher", "batch_unlabelled": 3}, "batch_unlabelled", "2 or 4"),
        ({"method": "bcp", "batch_labelled": 6, "batch_unlabelled": 6}, "batch_labelled", "4 or 8"),
    ],
)
def test_a_batch_without_equal_parts_is_refused_with_the_nearest_sizes(
    changes, key, nearest, tiny, tiny_config
):
    with pytest.raises(UsageError, match="equal parts") as refused:
        prepare(tiny, tiny_config(processes=2, **changes), World(size=2, local_size=2))
    assert refused.value.where == key
    assert nearest in refused.value.expected


@pytest.mark.parametrize(("asked", "there"), [(2, 1), (4, 2)])
def test_another_number_of_processes_than_the_settings_say_is_refused(
    asked, there, tiny, tiny_config
):
    config = tiny_config(processes=asked, batch_labelled=4)
    with pytest.raises(UsageError, match="Another number of processes"):
        prepare(tiny, config, World(size=there, local_size=there))


def test_random_numbers_differ_by_process_and_alone_they_are_as_ever():
    names = [World(rank=rank, size=2).seed_names for rank in (0, 1)]
    assert ALONE.seed_names == ()
    assert len({ALONE.seed_names, *names}) == 3


def test_alone_nothing_is_exchanged():
    state = {"x": 1}
    assert ALONE.mean(float("inf")) == float("inf")
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.share(state) == state
    assert ALONE.gather(state) == [state]
    assert ALONE.part(torch.arange(3)).tolist() == [0, 1, 2]


def test_a_silence_is_told_with_both_of_its_reasons(monkeypatch) -> None:
    def silent(_value):
        raise RuntimeError("Timed out waiting 600000ms for recv operation to complete")

    monkeypatch.setattr("torch.distributed.all_reduce", silent)
    with pytest.raises(UnavailableError, match="gave no answer in time") as caught:
        World(rank=1, size=2).mean(1.0)
    assert "Its own message" in caught.value.action
    assert "--timeout-s" in caught.value.action
