"""Medical-SAM2's self-sorting memory bank: few memories, unlike each other, of fair quality.

Source: Medical-SAM2 (arXiv 2408.00874), as research dossier D.1 reads its public code. While there
is room everything is kept. A full bank finds the stored memory that is least like the candidate,
and of all others the one most like that memory; the candidate takes the place of the latter if it
is less like the former than it, and if its predicted IoU is not much lower. Reading is a weighted
draw with replacement: a memory is drawn the more often the more the image it was made from looks
like the image at hand.

Letters: m stored memories, c channels, y rows, x columns of the memory, d flattened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class BankEntry:
    """One memory; gradients never pass through the bank.

    Attributes:
        memory_cyx: From the memory encoder.
        position_cyx: Its position code.
        embedding_d: The image embedding it belongs to, flattened.
        predicted_iou: The decoder's own estimate of the mask, 0 to 1.
        name: Number that the caller finds it by, such as the slice.
    """

    memory_cyx: Tensor
    position_cyx: Tensor
    embedding_d: Tensor
    predicted_iou: float
    name: int = 0


@dataclass(frozen=True)
class SelfSortingBank:
    """Up to `capacity` entries in the order of their places; never changed, only replaced.

    Attributes:
        entries: What is kept.
        capacity: Medical-SAM2: 16.
        iou_slack: How much lower the predicted IoU of a newcomer may be. Medical-SAM2: 0.1.
        min_iou: Candidates below it are never kept. Medical-SAM2: 0, all.
    """

    entries: tuple[BankEntry, ...] = ()
    capacity: int = 16
    iou_slack: float = 0.1
    min_iou: float = 0.0

    def __len__(self) -> int:
        return len(self.entries)

    def offer(self, candidate: BankEntry) -> SelfSortingBank:
        """The bank after one candidate was offered: itself if it is not kept."""
        if candidate.predicted_iou < self.min_iou:
            return self
        kept = _detached(candidate)
        if len(self.entries) < self.capacity:
            return replace(self, entries=(*self.entries, kept))
        place = replaced_place(
            torch.stack([e.memory_cyx.flatten() for e in self.entries]),
            kept.memory_cyx.flatten(),
        )
        if place is None:
            return self
        if candidate.predicted_iou <= self.entries[place].predicted_iou - self.iou_slack:
            return self
        return replace(self, entries=(*self.entries[:place], kept, *self.entries[place + 1 :]))

    def draw(self, embedding_d: Tensor, count: int, generator: Generator) -> list[BankEntry]:
        """`count` entries, drawn with replacement by `resampling_weights`; none from an empty bank.

        The numbers come from `generator`, on its device.
        """
        if not self.entries or count < 1:
            return []
        stored_md = torch.stack([e.embedding_d for e in self.entries])
        weights = resampling_weights(stored_md, embedding_d.detach())
        drawn = torch.multinomial(
            weights.to(generator.device), count, replacement=True, generator=generator
        )
        return [self.entries[i] for i in drawn.tolist()]


def replaced_place(stored_md: Tensor, candidate_d: Tensor) -> int | None:
    """The place of a full bank that the candidate would take by dissimilarity; None: it stays out.

    i is the stored memory least like the candidate, j the one most like i (i itself apart); the
    candidate takes the place of j if it is less like i than j is. Likeness is the cosine. With one
    place there is no j, and the bank stays as it is.

    In float32 whatever the autocast state: slices of one volume are so alike that bfloat16 makes
    their cosines equal.
    """
    if len(stored_md) < 2:
        return None
    with torch.autocast(stored_md.device.type, enabled=False):
        stored = functional.normalize(stored_md.float(), dim=1)
        among_mm = stored @ stored.T
        to_candidate_m = stored @ functional.normalize(candidate_d.float(), dim=0)
    among_mm.fill_diagonal_(-torch.inf)
    least = int(to_candidate_m.argmin())
    twin = int(among_mm[least].argmax())
    return twin if bool(to_candidate_m[least] < among_mm[least, twin]) else None


def resampling_weights(stored_md: Tensor, query_d: Tensor) -> Tensor:
    """Softmax over the bank of the cosine to the query, without a temperature; sums to 1."""
    cosine_m = functional.cosine_similarity(stored_md.float(), query_d.float()[None], dim=1)
    return cosine_m.softmax(0)


@dataclass(frozen=True)
class BankRules:
    """How the banks of a training behave; see `SelfSortingBank`."""

    capacity: int = 16
    iou_slack: float = 0.1
    min_iou: float = 0.0

    def empty(self) -> SelfSortingBank:
        """A bank without entries."""
        return SelfSortingBank((), self.capacity, self.iou_slack, self.min_iou)


class ClassBanks(nn.Module):
    """One bank per class, saved and restored with the checkpoint.

    A module without parameters: its state travels with the modules of a method, so that a resumed
    run draws the memories that the uninterrupted one would have drawn.
    """

    here: Tensor

    def __init__(self, rules: BankRules) -> None:
        super().__init__()
        self.rules = rules
        self.banks: dict[int, SelfSortingBank] = {}
        # Knows the device that the method was moved to: checkpoints are read on the CPU.
        self.register_buffer("here", torch.empty(0), persistent=False)

    def of(self, class_index: int) -> SelfSortingBank:
        """The bank of a class; empty before its first memory."""
        return self.banks.get(class_index) or self.rules.empty()

    def offer(self, class_index: int, candidate: BankEntry) -> None:
        """Offer one candidate to the bank of its class."""
        self.banks[class_index] = self.of(class_index).offer(candidate)

    def clear(self) -> None:
        """Forget everything."""
        self.banks = {}

    def get_extra_state(self) -> dict[str, Any]:
        """Entries as plain tensors by class, for `state_dict`."""
        return {
            str(k): {
                "memory": torch.stack([e.memory_cyx for e in bank.entries]),
                "position": torch.stack([e.position_cyx for e in bank.entries]),
                "embedding": torch.stack([e.embedding_d for e in bank.entries]),
                "predicted_iou": [e.predicted_iou for e in bank.entries],
                "name": [e.name for e in bank.entries],
            }
            for k, bank in self.banks.items()
            if bank.entries
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """What `get_extra_state` gave; the memories come to the module's own device."""
        device = self.here.device
        self.banks = {
            int(k): replace(
                self.rules.empty(),
                entries=tuple(
                    BankEntry(*parts)
                    for parts in zip(
                        found["memory"].to(device),
                        found["position"].to(device),
                        found["embedding"].to(device),
                        found["predicted_iou"],
                        found["name"],
                        strict=True,
                    )
                ),
            )
            for k, found in state.items()
        }


def _detached(entry: BankEntry) -> BankEntry:
    return replace(
        entry,
        memory_cyx=entry.memory_cyx.detach().clone(),
        position_cyx=entry.position_cyx.detach().clone(),
        embedding_d=entry.embedding_d.detach().clone(),
    )
