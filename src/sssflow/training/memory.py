"""Whether what a run wants to hold fits into the memory that it may use."""

from __future__ import annotations

import logging

from sssflow.errors import UsageError

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
