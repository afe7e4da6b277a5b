"""Run a compiled pipeline on this machine, with the same components as on a cluster."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sssflow.errors import (
    InternalError,
    InterruptedRun,
    SssflowError,
    UnavailableError,
    UsageError,
    kind_of,
)
from sssflow.pipeline.events import EVENTS_FOLDER, EventReader, TaskEvent, request_stop
from sssflow.pipeline.ir import require_kfp
from sssflow.pipeline.local_worker import GRACE_S, WorkOrder
from sssflow.pipeline.processes import signal_group, stop_requests
from sssflow.pipeline.results import LocalRunResult, collect, require_own_folder
from sssflow.pipeline.store import Store, program_digest
from sssflow.storage.atomic import disk_errors
from sssflow.storage.lock import locked

LOG_FILE = "pipeline.log"

_POLL_S = 0.2
_LAST_LINES = 20

# PATH and TMPDIR are set by the shell, so that nothing here reads the environment.
_LAUNCH = (
    'export PATH="$1:$PATH" TMPDIR="$2" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1; shift 2; exec "$@"'
)


def run_local(
    ir_path: Path,
    parameters: Mapping[str, Any],
    work_dir: Path,
    *,
    out: Path | None = None,
    on_event: Callable[[TaskEvent], None] | None = None,
) -> LocalRunResult:
    """Run a compiled pipeline with KFP's subprocess runner and gather its results.

    The same call continues an interrupted run and does no finished work twice.

    Args:
        ir_path: Compiled pipeline.
        parameters: Its parameters; `store_uri` is the folder `store` in `work_dir` if not given,
            and may lie in S3.
        work_dir: Everything else of the run: `kfp/`, `pipeline.log`.
        out: Folder for what a reader wants (see `results.collect`); `results` in `work_dir` if
            not given.
        on_event: Called in this thread for each event of a task, in order.

    Raises:
        SssflowError: A task failed; the kind and the message are those of the task.
        InterruptedRun: SIGTERM, Ctrl-C or the end of the terminal; what was finished is kept.
        UsageError: kfp is not installed, or `out` holds somebody else's files.
        UnavailableError: Another run works in the same folder.
    """
    require_kfp()
    if not ir_path.is_file():
        raise UsageError("The compiled pipeline does not exist.", where=ir_path)
    work_dir = work_dir.absolute()
    target = (out or work_dir / "results").absolute()
    require_own_folder(target)
    started_s = time.monotonic()
    busy = UnavailableError(
        "Another run works in this folder.",
        where=work_dir,
        action="Wait for it to end, or choose another folder.",
    )
    with locked(work_dir / ".lock", refusal=busy) as lock, disk_errors(work_dir):
        arguments = {"store_uri": (work_dir / "store").as_uri(), **parameters}
        outputs = _run(ir_path.absolute(), arguments, work_dir, on_event or _ignore, lock)
        store = Store(str(arguments["store_uri"]), program=program_digest())
        with contextlib.closing(store):
            gathered = collect(outputs, target, store=store)
    return LocalRunResult(
        out=target,
        summary=gathered.summary,
        bundle=gathered.bundle,
        runs=gathered.runs,
        report=gathered.report,
        log=work_dir / LOG_FILE,
        wall_time_s=time.monotonic() - started_s,
    )


@dataclass
class _Follower:
    """Passes the events of tasks on, remembers the failures, and lets no task start after one."""

    folder: Path
    reader: EventReader
    on_event: Callable[[TaskEvent], None]
    failures: list[TaskEvent]

    def look(self) -> None:
        for event in self.reader.new_events():
            if event.state == "failed":
                self.failures.append(event)
                request_stop(self.folder)
            with contextlib.suppress(OSError):  # the terminal may be gone
                self.on_event(event)


def _run(
    ir_path: Path,
    parameters: Mapping[str, Any],
    work_dir: Path,
    on_event: Callable[[TaskEvent], None],
    lock: int,
) -> dict[str, str]:
    """The pipeline's outputs; anything else is an exception. The worker holds `lock` too."""
    log_path = work_dir / LOG_FILE
    # The temporary folder is short: sockets of PyTorch's workers live there.
    with tempfile.TemporaryDirectory(prefix="sssflow-") as tmp, log_path.open("wb") as log:
        events = Path(tmp) / EVENTS_FOLDER
        events.mkdir()
        follower = _Follower(events, EventReader(events), on_event, [])
        order = WorkOrder(
            ir_path=ir_path,
            parameters=dict(parameters),
            pipeline_root=work_dir / "kfp",
            result_path=Path(tmp) / "outputs.json",
        )
        order_path = Path(tmp) / "order.json"
        order_path.write_text(order.model_dump_json(), encoding="utf-8")
        worker = subprocess.Popen(  # noqa: S603 - our own module, no shell text from outside
            [
                *("/bin/sh", "-c", _LAUNCH, "sh", _python_folder(Path(tmp)), tmp),
                *(sys.executable, "-m", "sssflow.pipeline.local_worker", str(order_path)),
            ],
            stdin=subprocess.PIPE,  # never written to: its end tells the worker of ours
            pass_fds=(lock,),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        interrupted = _wait(worker, follower)
        if order.result_path.is_file() and worker.returncode == 0 and not follower.failures:
            outputs: dict[str, str] = json.loads(order.result_path.read_text(encoding="utf-8"))
            return outputs
    raise _reason(follower.failures, interrupted, worker.returncode, log_path)


def _wait(worker: subprocess.Popen[bytes], follower: _Follower) -> bool:
    """Follow the worker to its end; True if we were asked to stop on the way."""
    with stop_requests() as asked:
        deadline_s = float("inf")
        try:
            while worker.poll() is None:
                follower.look()
                if asked and deadline_s == float("inf"):
                    request_stop(follower.folder)
                    signal_group(worker, signal.SIGTERM)
                    deadline_s = time.monotonic() + GRACE_S
                if time.monotonic() > deadline_s:
                    signal_group(worker, signal.SIGKILL)
                time.sleep(_POLL_S)
        finally:
            # After its end too: a worker that the system killed leaves its task behind.
            signal_group(worker, signal.SIGKILL)
            worker.communicate()
        follower.look()
        return bool(asked)


def _reason(
    failures: list[TaskEvent], interrupted: bool, return_code: int, log_path: Path
) -> SssflowError:
    """The error that the whole run ends with."""
    stopped = [event for event in failures if event.exit_code == InterruptedRun.exit_code]
    if interrupted or (stopped and len(stopped) == len(failures)):
        text = "The pipeline was stopped; what was finished is kept."
        if stopped:
            text = f"The task {stopped[0].name} was stopped: {stopped[0].message}"
        return InterruptedRun(text, action="Run the same command again to continue.")
    for event in failures:
        if event.exit_code != InterruptedRun.exit_code:
            kind = kind_of(event.exit_code)
            return kind(f"The task {event.name} failed: {event.message}\n  log: {log_path}")
    return InternalError(
        "The pipeline ended without a result and without a reason.",
        where=log_path,
        found=f"exit status {return_code}; last lines of the log:\n{_tail(log_path)}",
        action="If the machine ran out of memory, use smaller batches or fewer shards.",
    )


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])


def _python_folder(tmp: Path) -> str:
    """A folder whose `python3` is the interpreter that runs now."""
    folder = Path(sys.executable).parent
    if (folder / "python3").exists():
        return str(folder)
    shim = tmp / "bin" / "python3"
    shim.parent.mkdir()
    quoted = "'" + sys.executable.replace("'", "'\\''") + "'"
    shim.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    return str(shim.parent)


def _ignore(event: TaskEvent) -> None:
    """Nobody listens."""
