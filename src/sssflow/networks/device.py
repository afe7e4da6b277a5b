"""The device that a setting names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sssflow.errors import DataError, UsageError


def choose_device(name: str, *, where: str = "device") -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:<n>`; `auto` is the GPU where there is one.

    Args:
        name: The setting.
        where: Its key, for the error.

    Raises:
        UsageError: The name is none of these, or there is no such GPU here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(
            "There is no such device.",
            where=where,
            expected="auto, cpu, cuda or cuda:<n>",
            found=name,
        )
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(
            "The GPU is not here.",
            where=where,
            expected=f"more than {device.index or 0} CUDA device(s)",
            found=f"{count} CUDA device(s)",
            action=f"Set {where} to auto or cpu, or run where the GPU is.",
        )
    return device


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
