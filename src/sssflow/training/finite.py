"""What stops a training whose numbers are none: a loss, or weights, that are not finite."""

from __future__ import annotations

import math

from torch import nn

from sssflow.errors import DataError
from sssflow.networks.trained import not_finite
from sssflow.training.data import Batch
from sssflow.training.methods.base import LossTerms


def require_finite_loss(
    modules: nn.Module, terms: LossTerms, loss: float, step: int, batch: Batch
) -> None:
    """Refuse the loss of step `step` (from 0), before it moves a weight.

    Raises:
        DataError: It is NaN or infinite; step and cases are named, or the weights if these were
            not finite before.
    """
    if math.isfinite(loss):
        return
    require_finite_weights(modules, step)
    cases = set(batch.labelled.case_ids)
    if batch.unlabelled is not None:
        cases |= set(batch.unlabelled.case_ids)
    values = {name: float(term.detach()) for name, term in terms.all_terms.items()}
    raise DataError(
        "The loss is not finite; training stopped before the weights were touched.",
        where=f"step {step}, cases {', '.join(sorted(cases))}",
        expected="finite loss terms",
        found=", ".join(f"{name}={value:g}" for name, value in values.items()),
        action="Look at these cases; if they are sound, lower optimiser.learning_rate.",
    )


def require_finite_weights(modules: nn.Module, done: int) -> None:
    """Refuse weights that are to be kept after `done` steps.

    A finite loss can have a gradient that is not. Looked at only where weights are kept, and where
    a loss fails: a look at every gradient would make every step wait for the GPU.

    Raises:
        DataError: Some weight is NaN or infinite.
    """
    found = not_finite(modules)
    if found:
        raise DataError(
            "Weights are not finite, though the losses so far were; they are not kept.",
            where=f"after {done} steps",
            expected="finite weights",
            found=f"NaN or infinity in {len(found)} tensors, first {found[0]}",
            action="The same command goes on from the newest checkpoint. If this comes again, give "
            "another folder, and lower optimiser.learning_rate or set precision=float32.",
        )
