"""Memory that a volume asks for and does not get."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sssflow.errors import DataError


@contextmanager
def volume_fits(where: Path | str) -> Iterator[None]:
    """Memory that ends inside, of the machine or the GPU, is the fault of one volume's size.

    Raises:
        DataError: numpy or torch were refused memory; other errors pass.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's refusals are RuntimeErrors
        text = str(error)
        refused = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not refused and "can't allocate memory" not in text:
            raise
        raise DataError(
            "The volume does not fit into memory.",
            where=where,
            found=text.partition("Error code")[0].strip() or type(error).__name__,
            action="Crop or resample it, or use a machine with more memory.",
        ) from None
