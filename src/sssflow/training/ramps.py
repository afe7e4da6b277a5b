"""Schedules as closed forms of the step: a resumed run needs no scheduler state.

Every function takes the 0-based step and the total number of steps and returns a factor.
"""

from __future__ import annotations

import math
from typing import Literal

ScheduleKind = Literal["poly", "cosine", "constant", "step"]
MaskWeightKind = Literal["falling", "constant", "rising"]


def rising(step: int, length: int) -> float:
    """Sigmoid-shaped ramp-up exp(-5 (1 - t/T)^2), from 0.0067 at t=0 to 1 at t>=T.

    `length` <= 0 gives 1. Source: Laine and Aila, temporal ensembling (ICLR 2017), as used by the
    SSL4MIS baselines for the consistency weight.
    """
    if length <= 0:
        return 1.0
    phase = 1.0 - min(max(step, 0), length) / length
    return math.exp(-5.0 * phase * phase)


def falling(step: int, length: int) -> float:
    """The ramp-up read backwards: 1 at t=0, 0.0067 at t>=T.

    Source: SemiSAM (arXiv 2312.06316), whose generalist term counts most while the specialist
    still knows little: the consistency ramp evaluated at T - t.
    """
    return rising(length - min(max(step, 0), max(length, 0)), length)


def mask_weight(kind: MaskWeightKind, step: int, length: int) -> float:
    """Factor of the SAM-2 mask term at `step`."""
    if kind == "constant":
        return 1.0
    return falling(step, length) if kind == "falling" else rising(step, length)


def learning_rate_factor(
    kind: ScheduleKind,
    step: int,
    steps: int,
    *,
    power: float = 0.9,
    drop_every: int = 2500,
    warmup_steps: int = 0,
    floor: float = 0.0,
) -> float:
    """Factor of the base learning rate at `step`, in [floor, 1].

    poly: (1 - t/T)^power. cosine: (1 + cos(pi t/T)) / 2. step: a tenth after every `drop_every`
    steps (UA-MT, arXiv 1907.07034). A warm-up multiplies the first `warmup_steps` by
    (t + 1) / warmup_steps; T is always the whole run, so that the value at a step does not depend
    on where the run was resumed.
    """
    progress = min(max(step, 0), steps) / max(steps, 1)
    if kind == "poly":
        factor = float((1.0 - progress) ** power)
    elif kind == "cosine":
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif kind == "step":
        factor = 0.1 ** (max(step, 0) // drop_every)
    else:
        factor = 1.0
    if step < warmup_steps:
        factor *= (step + 1) / warmup_steps
    return max(factor, floor)
