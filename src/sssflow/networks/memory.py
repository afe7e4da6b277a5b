"""Memory that a volume asks for and does not get."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sssflow.errors import DataError

_GPU_REFUSALS = ("CUDA error: out of memory", "_ALLOC_FAILED")
"""What CUDA itself says, and cuBLAS and cuDNN, where torch has no class of its own for it."""


@contextmanager
def volume_fits(where: Path | str) -> Iterator[None]:
    """Memory that ends inside, of the machine or the GPU, is the fault of one volume's size.

    Raises:
        DataError: numpy or torch were refused memory; other errors pass.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's refusals are RuntimeErrors
        if not lacks_memory(error):
            raise
        raise DataError(
            "The volume does not fit into memory.",
            where=where,
            found=refusal_text(error),
            action="Crop or resample it, use a machine with more memory, or run less beside it.",
        ) from error


def lacks_memory(error: Exception) -> bool:
    """Whether the machine or a GPU refused memory."""
    if isinstance(error, MemoryError) or lacks_gpu_memory(error):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def refusal_text(error: Exception) -> str:
    """What was refused, in the words of numpy or torch."""
    return str(error).partition("Error code")[0].strip() or type(error).__name__


def lacks_gpu_memory(error: BaseException | None) -> bool:
    """Whether a GPU refused memory: to `error` itself, or to what it was raised from."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(part in str(error) for part in _GPU_REFUSALS):
            return True
        error = error.__cause__ or error.__context__
    return False
