"""The process in which KFP runs a compiled pipeline.

Called as `python -m sssflow.pipeline.local_worker ORDER.json`. A process of its own, because
KFP's local mode keeps global state, replaces the handlers of the root logger and writes to
standard output. It ends in order when the process that started it is gone, whatever ended that one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from sssflow.contracts.base import Record
from sssflow.pipeline.events import listening_folder, request_stop

GRACE_S = 300.0
"""Time that tasks get to save their state after a signal."""


class WorkOrder(Record):
    """What the worker is to do.

    Attributes:
        ir_path: Compiled pipeline.
        parameters: Its parameters.
        pipeline_root: Where KFP puts the outputs of tasks.
        result_path: Where the outputs of the pipeline are written as JSON, on success only.
    """

    ir_path: Path
    parameters: dict[str, Any]
    pipeline_root: Path
    result_path: Path


def main(order_path: Path) -> None:
    """Run the pipeline of a work order; any failure leaves by exception."""
    from kfp import components, local

    order = WorkOrder.model_validate_json(order_path.read_bytes())
    # A signal is for the tasks (training saves its state); the worker waits for them to end.
    # A handler, unlike SIG_IGN, is not inherited by them.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _wait_for_tasks)
    _end_with_the_starter()
    # KFP replaces the text "python3" in a task's whole command by sys.executable, in parameters
    # too, and does not quote it. This makes the replacement change nothing; the right python3 is
    # first in PATH.
    sys.executable = "python3"
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(order.pipeline_root),
        raise_on_error=True,
    )
    pipeline = components.load_component_from_file(str(order.ir_path))
    task = pipeline(**order.parameters)
    order.result_path.write_text(json.dumps(dict(task.outputs)), encoding="utf-8")


def _end_with_the_starter() -> None:
    """Stop the tasks when standard input ends: the process at its other side is gone."""
    lifeline = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # for the tasks

    def watch() -> None:
        os.read(lifeline, 1)
        folder = listening_folder()
        if folder is not None:
            request_stop(folder)
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="sssflow-starter", daemon=True).start()


def _wait_for_tasks(number: int, frame: FrameType | None) -> None:
    """Let the running tasks end by themselves."""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
