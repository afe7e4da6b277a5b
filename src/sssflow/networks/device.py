"""The device that a setting names."""

from __future__ import annotations

import torch

from sssflow.errors import UsageError


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
