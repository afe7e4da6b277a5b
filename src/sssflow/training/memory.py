"""Whether what a run wants to hold fits into the memory that it may use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sssflow.errors import UsageError
from sssflow.networks.memory import memory_refused_as

_LOG = logging.getLogger(__name__)
_GIB = 1 << 30


def require_memory(size_bytes: int, memory_gib: float, *, what: str, remedy: str) -> None:
    """Say how much memory a stream takes, before it is read.

    Raises:
        UsageError: More than the run may use.
    """
    needed_gib = size_bytes / _GIB
    if needed_gib > memory_gib:
        raise UsageError(
            "The samples do not fit into the memory that this run may use.",
            expected=f"at most {memory_gib:g} GiB (train.memory_gib, or of warmup, baseline)",
            found=f"{what}: {needed_gib:.1f} GiB",
            action=f"Raise memory_gib of that section, or {remedy}.",
        )
    _LOG.info("%s, %.2f GiB", what, needed_gib)


@contextmanager
def training_fits() -> Iterator[None]:
    """Memory that ends inside, of the machine or the GPU, is the fault of the settings.

    Raises:
        UsageError: torch or numpy were refused memory; other errors pass.
    """

    def refusal(found: str) -> UsageError:
        return UsageError(
            "The training does not fit into memory.",
            where="batch_labelled, batch_unlabelled, preprocessing, network of the section that "
            "trains",
            found=found,
            action="Make the batches, slices, patches or the network smaller, share the batch "
            "between more GPUs (processes), or end what else holds the memory.",
        )

    with memory_refused_as(refusal):
        yield
