"""The process of one run: `python -m sssflow.bench.worker ORDER.json`.

A process of its own, because a run that dies of memory must not take the others with it. It
writes `status.json` while it works, then `result.json` or `failure.json`. It stops with a
checkpoint when its standard input closes, so it never outlives the benchmark that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from sssflow.bench.plan import RunOrder
from sssflow.bench.run import run
from sssflow.contracts.bench import RunFailure
from sssflow.errors import SssflowError
from sssflow.networks.memory import lacks_gpu_memory
from sssflow.storage.atomic import write_text
from sssflow.storage.contracts import save_contract

FAILURE_FILE = "failure.json"
STATUS_FILE = "status.json"
_STATUS_EVERY_S = 2.0
_GIB = 1 << 30
_EXIT_MEMORY, _EXIT_BUG = 69, 70


def main(order_path: Path) -> int:
    """Run the order; the exit code is that of the error, 0 without one."""
    order = RunOrder.model_validate_json(order_path.read_bytes())
    if order.threads:
        torch.set_num_threads(min(order.threads, torch.get_num_threads()))
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    devices = {order.experiment.train.device, order.experiment.evaluate.device}
    status = Status(order.out / STATUS_FILE, may_use_gpu=devices != {"cpu"})
    (order.out / FAILURE_FILE).unlink(missing_ok=True)
    try:
        status.say("starting")
        run(order, status.say)
    except Exception as error:
        refused = lacks_gpu_memory(error)
        if isinstance(error, SssflowError):
            text = error.describe()
            return _failed(order, error.kind, error.exit_code, text, out_of_memory=refused)
        text = f"{type(error).__name__}: {error}"
        if refused:
            return _failed(order, "out of GPU memory", _EXIT_MEMORY, text, out_of_memory=True)
        traceback.print_exc()
        return _failed(order, "internal error", _EXIT_BUG, text)
    return 0


class Status:
    """What the run is doing and which memory it holds, for whoever started it.

    Args:
        path: File to write.
        may_use_gpu: Whether some part of the run computes there where there is one.
    """

    def __init__(self, path: Path, *, may_use_gpu: bool = True) -> None:
        self._path = path
        self._may_use_gpu = may_use_gpu
        self._written_s = -_STATUS_EVERY_S

    def say(self, message: str) -> None:
        """Keep the message, at most one in two seconds.

        The memory is the most that was ever held; 0 until something was computed on the GPU.
        """
        now_s = time.monotonic()
        if now_s - self._written_s < _STATUS_EVERY_S:
            return
        self._written_s = now_s
        found: dict[str, Any] = {"message": message, "gpu": None}
        if self._may_use_gpu and torch.cuda.is_available():
            held = torch.cuda.max_memory_reserved()
            # To ask what is free takes memory of its own, which may be refused.
            free = torch.cuda.mem_get_info()[0] if held else 0
            found["gpu"] = {"free_gib": free / _GIB, "held_gib": held / _GIB}
        write_text(self._path, json.dumps(found))


def _failed(
    order: RunOrder, kind: str, exit_code: int, message: str, *, out_of_memory: bool = False
) -> int:
    failure = RunFailure(
        key=order.key,
        order_digest=order.digest,
        kind=kind,
        exit_code=exit_code,
        message=message,
        out_of_memory=out_of_memory,
    )
    save_contract(failure, order.out / FAILURE_FILE)
    return exit_code


def _stop_with_parent() -> None:
    """Wait for the end of standard input, which the parent holds open as long as it lives."""
    # Not by sys.stdin: its buffer is locked while the thread waits, and an ending Python aborts
    # on a lock that it cannot get.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
