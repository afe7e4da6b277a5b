"""Memory that a volume asks for and does not get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sssflow.errors import DataError, SssflowError

_GPU_REFUSALS = ("CUDA error: out of memory", "_ALLOC_FAILED")
"""What CUDA itself says, and cuBLAS and cuDNN, where torch has no class of its own for it."""


@contextmanager
def volume_fits(where: Path | str) -> Iterator[None]:
    """Memory that ends inside, of the machine or the GPU, is the fault of one volume's size.

    Raises:
        DataError: numpy or torch were refused memory; other errors pass.
    """

    def refusal(found: str) -> DataError:
        return DataError(
            "The volume does not fit into memory.",
            where=where,
            found=found,
            action="Crop or resample it, use a machine with more memory, or run less beside it.",
        )

    with memory_refused_as(refusal):
        yield


@contextmanager
def memory_refused_as(refusal: Callable[[str], SssflowError]) -> Iterator[None]:
    """Raise `refusal(words of numpy or torch)` where memory was refused; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's refusals are RuntimeErrors
        if not _lacks_memory(error):
            raise
        found = str(error).partition("Error code")[0].strip() or type(error).__name__
        raise refusal(found) from error


def _lacks_memory(error: Exception) -> bool:
    """Whether the machine or a GPU refused memory."""
    if isinstance(error, MemoryError) or lacks_gpu_memory(error):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def lacks_gpu_memory(error: BaseException | None) -> bool:
    """Whether a GPU refused memory: to `error` itself, or to what it was raised from."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(part in str(error) for part in _GPU_REFUSALS):
            return True
        error = error.__cause__ or error.__context__
    return False
