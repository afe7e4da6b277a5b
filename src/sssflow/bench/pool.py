"""Several runs at a time, each in a process of its own; one that fails leaves the others alone."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from sssflow.bench.plan import RunOrder
from sssflow.bench.run import RESULT_FILE
from sssflow.bench.worker import FAILURE_FILE, STATUS_FILE
from sssflow.contracts.bench import RunFailure
from sssflow.errors import DataError
from sssflow.pipeline.processes import signal_group, stop_requests
from sssflow.storage.atomic import disk_errors, write_text
from sssflow.storage.contracts import load_contract, save_contract

_LOG = logging.getLogger(__name__)
LOG_FILE = "log.txt"
_ORDER_FILE = "order.json"
_GRACE_S = 120.0
"""Time that runs get to write a checkpoint after a signal."""
_SPARE_GIB = 1.0
"""Left free on the GPU beside what a further run is expected to need (its CUDA context)."""
_HEADROOM = 1.25


@dataclass
class _Worker:
    order: RunOrder
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    had_company: bool = False

    def status(self) -> dict[str, Any]:
        try:
            found = json.loads((self.order.out / STATUS_FILE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@dataclass
class Pool:
    """Runs orders, `parallel` at a time.

    On a GPU a further run is started only when one that runs has said what memory it holds, and
    only if what is free exceeds the largest of these, for the new run and for each that has not
    said yet. A run that dies of GPU memory and was not alone all the time is tried again alone.
    """

    parallel: int
    poll_s: float
    stopped: bool = False
    failures: list[RunFailure] = field(default_factory=list)
    _running: list[_Worker] = field(default_factory=list)
    _alone: list[RunOrder] = field(default_factory=list)

    def run(self, orders: Sequence[RunOrder], done: Callable[[RunOrder], object]) -> None:
        """Run all orders; returns when every process has ended.

        Failures are collected. After SIGINT or SIGTERM nothing more is started, the running ones
        are asked to save their state, and `stopped` is true.

        Raises:
            UnavailableError: The disk is full, read-only or refuses access.
        """
        waiting = list(orders)
        with stop_requests() as asked:
            try:
                while (waiting or self._running or self._alone) and not asked:
                    self._reap(done)
                    self._start_next(waiting)
                    self._tell(len(orders), len(waiting))
                    time.sleep(self.poll_s)
            finally:
                self.stopped = bool(asked)
                self._stop_all()
            self._reap(done)

    def _start_next(self, waiting: list[RunOrder]) -> None:
        if self._alone and not waiting and not self._running:
            self._running.append(_start(self._alone.pop(0)))
        elif waiting and len(self._running) < self.parallel and self._memory_allows():
            self._running.append(_start(waiting.pop(0)))
            if len(self._running) > 1:
                for worker in self._running:
                    worker.had_company = True

    def _memory_allows(self) -> bool:
        states = [worker.status() for worker in self._running]
        said = [s["gpu"] for s in states if s.get("gpu") and s["gpu"]["held_gib"] > 0]
        silent = sum(not state or bool(state.get("gpu")) for state in states) - len(said)
        if not said:
            return silent == 0
        each = _HEADROOM * max(gpu["held_gib"] for gpu in said) + _SPARE_GIB
        return bool(min(gpu["free_gib"] for gpu in said) >= (silent + 1) * each)

    def _reap(self, done: Callable[[RunOrder], object]) -> None:
        for worker in [w for w in self._running if w.process.poll() is not None]:
            self._running.remove(worker)
            _close(worker)
            order = worker.order
            if (order.out / RESULT_FILE).exists():
                done(order)
                continue
            failure = _failure(order, worker.process.returncode)
            if failure.out_of_memory and worker.had_company:
                _LOG.warning("%s: out of GPU memory; it is tried again alone", order.key.name)
                self._alone.append(order)
                continue
            self.failures.append(failure)
            _LOG.warning("%s failed: %s", order.key.name, failure.first_line)

    def _tell(self, total: int, waiting: int) -> None:
        ended = total - waiting - len(self._running) - len(self._alone)
        what = "; ".join(
            f"{w.order.key.name}: {w.status().get('message', 'starting')}" for w in self._running
        )
        _LOG.info("%d of %d runs ended; %s", ended, total, what)

    def _stop_all(self) -> None:
        for worker in self._running:
            signal_group(worker.process, signal.SIGTERM)
        deadline_s = time.monotonic() + _GRACE_S
        for worker in self._running:
            try:
                worker.process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                signal_group(worker.process, signal.SIGKILL)
                worker.process.wait()


def _start(order: RunOrder) -> _Worker:
    order_file, log_file = order.out / _ORDER_FILE, order.out / LOG_FILE
    with disk_errors(log_file):
        order.out.mkdir(parents=True, exist_ok=True)
        for name in (STATUS_FILE, FAILURE_FILE):
            (order.out / name).unlink(missing_ok=True)
        write_text(order_file, order.model_dump_json(indent=1) + "\n")
        log = log_file.open("ab")
    process = subprocess.Popen(  # noqa: S603 - our own module, no text from outside
        [sys.executable, "-m", "sssflow.bench.worker", str(order_file)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return _Worker(order, process, log)


def _close(worker: _Worker) -> None:
    worker.log.close()
    if worker.process.stdin is not None:
        with contextlib.suppress(OSError):
            worker.process.stdin.close()
    (worker.order.out / STATUS_FILE).unlink(missing_ok=True)


def _failure(order: RunOrder, return_code: int) -> RunFailure:
    """What the worker said of its end, or what its end says where it said nothing."""
    path = order.out / FAILURE_FILE
    if path.exists():
        with contextlib.suppress(DataError):
            return load_contract(RunFailure, path)
    killed = return_code < 0
    name = signal.Signals(-return_code).name if killed else f"exit code {return_code}"
    failure = RunFailure(
        key=order.key,
        order_digest=order.digest,
        kind="killed" if killed else "internal error",
        exit_code=69 if killed else 70,
        message=f"The process of the run ended by {name}; its last words are in {LOG_FILE}.",
    )
    save_contract(failure, path)
    return failure
