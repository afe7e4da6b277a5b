"""Exponential moving average of a network: parameters and buffers."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


def make_teacher(student: N) -> N:
    """A copy in evaluation mode that needs no gradient."""
    teacher = copy.deepcopy(student)
    teacher.eval()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher


def ema_ratio(step: int, decay: float, lag: float = 1.0) -> float:
    """min(t / (t + lag), decay): 0 at the first step, so the teacher starts as the student.

    With lag 1 this is UniMatch V2's min(1 - 1/(t + 1), decay), which is the plain mean of all
    weights so far until the decay takes over. From scratch that mean is no network at all for
    hundreds of steps (its batch-norm statistics fit no weights); with lag 10 the teacher looks
    back over about the last tenth of the steps.
    """
    return min(step / (step + lag), decay)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, ratio: float) -> None:
    """In place: ratio * teacher + (1 - ratio) * student.

    Batch-norm statistics (floating-point buffers) are averaged like parameters: a teacher with
    averaged weights and another network's statistics is neither of the two. Counters are copied.
    """
    pairs = list(zip(teacher.state_dict().values(), student.state_dict().values(), strict=True))
    moving = [(into, value) for into, value in pairs if into.is_floating_point()]
    torch._foreach_lerp_([into for into, _ in moving], [value for _, value in moving], 1.0 - ratio)
    counters = [(into, value) for into, value in pairs if not into.is_floating_point()]
    if counters:
        torch._foreach_copy_([into for into, _ in counters], [value for _, value in counters])
