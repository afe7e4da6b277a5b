"""Labelled slices drawn by class, so that a rare class is seen as often as a common one.

Letters: n slices, b batch, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def slices_showing(label_nhw: Tensor, class_count: int) -> tuple[Tensor, ...]:
    """For every foreground class that is there, the numbers of the slices that show it."""
    found = (
        (label_nhw == number).flatten(1).any(1).nonzero()[:, 0] for number in range(1, class_count)
    )
    return tuple(slices.cpu() for slices in found if len(slices))


def by_class(
    index_b: Tensor, showing: Sequence[Tensor], probability: float, *, seed: int
) -> Tensor:
    """`index_b` with each entry replaced, with `probability`, by a slice of a drawn class.

    Every class of `showing` is drawn alike, then every slice of it; equal seeds, equal numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    replaced = torch.rand(len(index_b), generator=generator) < probability
    which = torch.randint(0, len(showing), (len(index_b),), generator=generator)
    place = torch.rand(len(index_b), generator=generator, dtype=torch.float64)
    drawn = [
        showing[number][int(share * len(showing[number]))]
        for number, share in zip(which.tolist(), place.tolist(), strict=True)
    ]
    return torch.where(replaced, torch.stack(drawn), index_b)
