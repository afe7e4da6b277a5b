"""What a run computes on: device, threads, versions."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

import sssflow
from sssflow.errors import UsageError
from sssflow.networks.device import choose_device
from sssflow.training.distributed import World


def process_device(wanted: str, number: int | None = None) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; `number` is that of the GPU, None: torch's choice.

    Raises:
        UsageError: CUDA is wanted and absent, or there is no GPU of this number.
    """
    device = choose_device(wanted)
    if device.type == "cpu" or number is None:
        return device
    if number >= torch.cuda.device_count():
        raise UsageError(
            "There are more processes than GPUs here.",
            where=f"process {number} of this machine",
            found=f"{torch.cuda.device_count()} GPU(s)",
            action="Start one process per GPU.",
        )
    return torch.device("cuda", number)


def device_name(device: torch.device, processes: int, *, half: bool) -> str:
    """What the record says about where the run took place, and with which numbers (`half`)."""
    name = f"cpu, {torch.get_num_threads()} thread(s)"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    name = f"{name}, {'bfloat16' if half else 'float32'}"
    return name if processes == 1 else f"{processes} processes, each on {name}"


@contextmanager
def threads(wanted: int, world: World) -> Iterator[None]:
    """Torch's threads inside; not named, the processes of one machine share its cores."""
    before = torch.get_num_threads()
    count = wanted
    if world.size > 1 and not wanted:
        count = max(1, before // world.local_size)
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def versions() -> dict[str, str]:
    """Of what the weights depend on."""
    return {
        "sssflow": sssflow.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
