"""Which remembered slices and object pointers SAM-2 attends to on a tracked slice.

The rule of the package's `_prepare_memory_conditioned_features` (sam2 1.1.0) with the settings of
its published models: all prompted slices, the nearest tracked slices before this one in the
direction of travel, and pointers of both with their distance in slices.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from sssflow.contracts.sam2_graphs import Sam2Rules


@dataclass(frozen=True)
class Attended:
    """What goes into memory attention.

    Attributes:
        slices, slots: Remembered slices, and the row of the time code of each.
        pointers, pointer_times: Slices whose pointer is used, and its distance, 1 for the farthest
            that can be reached.
    """

    slices: tuple[int, ...]
    slots: tuple[int, ...]
    pointers: tuple[int, ...]
    pointer_times: tuple[float, ...]


def attended(
    rules: Sam2Rules,
    index: int,
    slice_count: int,
    *,
    conditioning: Sequence[int],
    tracked: Set[int],
    reverse: bool,
) -> Attended:
    """The plan for slice `index` of `slice_count`.

    Args:
        rules: Of the model.
        index: The slice to be segmented.
        slice_count: Slices of the volume, at least 2.
        conditioning: Prompted slices, one of them before `index` in the direction of travel.
        tracked: Slices that were reached by tracking in this direction.
        reverse: Slices are visited from the last to the first.
    """
    sign = -1 if reverse else 1
    slices, slots = list(conditioning), [rules.memory_slots - 1] * len(conditioning)
    for distance in range(rules.memory_slots - 1, 0, -1):
        before = index - sign * distance
        if before in tracked:
            slices.append(before)
            slots.append(distance - 1)
    reach = min(slice_count, rules.max_pointers)
    pointers: list[tuple[int, int]] = []
    for other in conditioning:
        ahead = sign * (index - other)
        if ahead >= 0 or not rules.pointers_past_only:
            pointers.append((other, ahead if rules.pointers_signed else abs(ahead)))
    for distance in range(1, reach):
        before = index - sign * distance
        if before in tracked:
            pointers.append((before, distance))
    return Attended(
        slices=tuple(slices),
        slots=tuple(slots),
        pointers=tuple(other for other, _ in pointers),
        pointer_times=tuple(distance / (reach - 1) for _, distance in pointers),
    )
