"""The self-sorting memory bank: insertions worked by hand, the IoU gate, and weighted draws."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Generator, Tensor

from sssflow.sam.memory_bank import (
    BankEntry,
    BankRules,
    ClassBanks,
    SelfSortingBank,
    replaced_place,
    resampling_weights,
)


def entry(angle_deg: float, iou: float = 0.5, name: int = 0, look_deg: float = 0.0) -> BankEntry:
    """A memory and an embedding in the plane: cosines are those of the angles between them."""

    def unit(degrees: float) -> Tensor:
        turn = math.radians(degrees)
        return torch.tensor([math.cos(turn), math.sin(turn)])

    return BankEntry(unit(angle_deg).view(2, 1, 1), torch.zeros(2, 1, 1), unit(look_deg), iou, name)


def full(*angles_deg: float, iou: float = 0.5, **rules: float) -> SelfSortingBank:
    """A bank that is full of memories at these angles, named by their place."""
    entries = tuple(entry(a, iou, i) for i, a in enumerate(angles_deg))
    return SelfSortingBank(entries, capacity=len(entries), **rules)


def names(bank: SelfSortingBank) -> list[int]:
    return [e.name for e in bank.entries]


def test_a_bank_with_room_keeps_everything_whatever_its_quality() -> None:
    bank = SelfSortingBank(capacity=3)
    for i, iou in enumerate((0.9, 0.0, 0.1)):
        bank = bank.offer(entry(0.0, iou, i))
    assert names(bank) == [0, 1, 2]


def test_the_twin_of_the_least_similar_memory_gives_way() -> None:
    # Angles 0, 10, 90; candidate at 180. Cosines to it: -1, -0.985, 0: least is place 0. Most like
    # place 0 is place 1 (cos 10 = 0.985). -1 < 0.985: place 1 is replaced.
    bank = full(0, 10, 90).offer(entry(180, name=9))
    assert names(bank) == [0, 9, 2]


def test_memories_as_alike_as_slices_of_one_volume_are_told_apart_under_autocast() -> None:
    # Angles 0, 0.5, 1.5; candidate at 2. Cosines to it: 0.99939, 0.99966, 0.99996: least is place
    # 0. Most like it is place 1 (0.99996), which is replaced. In bfloat16 all of these are 1.
    stored = torch.stack([e.memory_cyx.flatten() for e in full(0, 0.5, 1.5).entries])
    candidate = entry(2).memory_cyx.flatten()
    with torch.autocast("cpu", torch.bfloat16):
        assert replaced_place(stored, candidate) == 1


def test_a_candidate_that_adds_no_difference_stays_out() -> None:
    # Angles 0 and 170; candidate at 5. Cosines to it: 0.996, -0.966: least is place 1, and the one
    # most like place 1 is place 0 (-0.985). -0.966 is not below -0.985.
    bank = full(0, 170)
    stored = torch.stack([e.memory_cyx.flatten() for e in bank.entries])
    assert replaced_place(stored, entry(5).memory_cyx.flatten()) is None
    assert names(bank.offer(entry(5, 1.0, 9))) == [0, 1]


def test_the_newcomer_may_be_a_little_worse_but_not_more() -> None:
    # Place 1 would give way (see above); its predicted IoU is 0.5, the slack 0.1.
    assert names(full(0, 10, 90).offer(entry(180, 0.41, 9))) == [0, 9, 2]
    assert names(full(0, 10, 90).offer(entry(180, 0.39, 9))) == [0, 1, 2]
    assert names(full(0, 10, 90, iou_slack=0.0).offer(entry(180, 0.41, 9))) == [0, 1, 2]


def test_a_doubted_mask_is_not_remembered_where_a_least_quality_is_asked() -> None:
    bank = SelfSortingBank(capacity=2, min_iou=0.6)
    assert len(bank.offer(entry(0, 0.59))) == 0
    assert len(bank.offer(entry(0, 0.6))) == 1


def test_a_bank_of_one_place_keeps_its_first_memory() -> None:
    assert names(full(0).offer(entry(180, 1.0, 9))) == [0]


def test_many_offers_spread_the_memories() -> None:
    bank = SelfSortingBank(capacity=4)
    for i in range(80):
        bank = bank.offer(entry(i * 37 % 360 if i > 20 else i * 0.1, name=i))
    angles = sorted(
        math.degrees(math.atan2(*reversed(e.memory_cyx.flatten().tolist()))) for e in bank.entries
    )
    gaps = [(b - a) % 360 for a, b in zip(angles, [*angles[1:], angles[0]], strict=True)]
    assert max(gaps) < 180, "the first twenty lay within two degrees"


def test_weights_are_the_softmax_of_the_cosines() -> None:
    stored = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    found = resampling_weights(stored, torch.tensor([5.0, 0.0]))
    # Cosines 1, 0, -1: e, 1, 1/e over their sum 4.0862.
    total = math.e + 1 + 1 / math.e
    assert found.tolist() == pytest.approx([math.e / total, 1 / total, 1 / math.e / total])


def test_draws_follow_the_weights_with_replacement() -> None:
    bank = SelfSortingBank(tuple(entry(0, name=i, look_deg=90 * i) for i in range(3)))
    drawn = bank.draw(entry(0).embedding_d, 9000, Generator().manual_seed(0))
    counts = Counter(e.name for e in drawn)
    total = math.e + 1 + 1 / math.e
    for name, weight in enumerate((math.e, 1.0, 1 / math.e)):
        assert counts[name] / 9000 == pytest.approx(weight / total, abs=0.02)


def test_the_same_generator_draws_the_same_memories() -> None:
    bank = SelfSortingBank(tuple(entry(i * 30, name=i, look_deg=i * 30) for i in range(8)))
    picks = [
        [e.name for e in bank.draw(entry(0).embedding_d, 5, Generator().manual_seed(3))]
        for _ in range(2)
    ]
    assert picks[0] == picks[1]
    assert len(picks[0]) == 5


def test_an_empty_bank_gives_nothing_to_draw() -> None:
    assert SelfSortingBank().draw(torch.ones(2), 4, Generator()) == []


def test_no_gradient_passes_through_the_bank() -> None:
    memory = torch.ones(2, 1, 1, requires_grad=True)
    bank = SelfSortingBank().offer(BankEntry(2 * memory, memory, memory.flatten(), 1.0))
    assert not bank.entries[0].memory_cyx.requires_grad
    with torch.no_grad():
        memory.zero_()
    assert bank.entries[0].position_cyx.sum() == 2, "a copy, not a view"


def test_class_banks_come_back_from_their_state_with_the_same_draws() -> None:
    banks = ClassBanks(BankRules(capacity=2, min_iou=0.1))
    for i in range(3):
        banks.offer(1, entry(i * 90, 0.9, i, look_deg=i * 45))
    banks.offer(2, entry(0, 0.05))
    again = ClassBanks(BankRules(capacity=2, min_iou=0.1))
    again.load_state_dict(banks.state_dict())
    assert sorted(again.banks) == [1]
    query = entry(0).embedding_d
    first, second = (
        [e.name for e in b.of(1).draw(query, 6, Generator().manual_seed(1))] for b in (banks, again)
    )
    assert first == second
    assert again.of(1).capacity == 2
    again.clear()
    assert len(again.of(1)) == 0


def test_memories_of_a_checkpoint_come_to_the_device_of_their_module() -> None:
    banks = ClassBanks(BankRules())
    banks.offer(1, entry(0, 0.9))
    # A checkpoint is read on the CPU; `meta` stands for the GPU of the run that is resumed.
    again = torch.nn.ModuleDict({"banks": ClassBanks(BankRules())}).to("meta")
    again.load_state_dict({f"banks.{k}": v for k, v in banks.state_dict().items()})
    (stored,) = again["banks"].of(1).entries
    parts = (stored.memory_cyx, stored.position_cyx, stored.embedding_d)
    assert {part.device.type for part in parts} == {"meta"}
