"""Following a run of a server to its end, through outages of the server's API."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from sssflow.errors import (
    InternalError,
    InterruptedRun,
    SssflowError,
    UnavailableError,
    kind_of,
)
from sssflow.pipeline.ir import graphs
from sssflow.pipeline.kfp_api import KfpApi, RunState
from sssflow.pipeline.kube import Kube, failed_pods, reason_in, troubles

_PARTS = ("root", "executor")


@dataclass
class Watcher:
    """Tells what changes in a run.

    Attributes:
        api: The server.
        say: Takes one line for every change.
        kube: The namespace of the run's pods; None: pods cannot be looked at.
        names: From keys of tasks in the compiled pipeline to the names that people know.
        every_s: Time between two looks.
        patience_s: How long the API may be away.
        sleep: Waits some seconds.
        clock: Seconds that only grow.
    """

    api: KfpApi
    say: Callable[[str], None]
    kube: Kube | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    every_s: float = 5.0
    patience_s: float = 600.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _states: dict[str, str] = field(default_factory=dict)
    _told: set[tuple[str, str]] = field(default_factory=set)

    def follow(self, run_id: str) -> RunState:
        """The run as it ended well.

        Raises:
            InterruptedRun: It was cancelled (exit 75).
            SssflowError: It failed, with the kind and the reason of the last try of the task that
                failed first where its log can be read, else as InternalError.
            UnavailableError: The API was away for longer than `patience_s`.
        """
        answered_s = self.clock()
        while True:
            try:
                run = self.api.run(run_id)
                answered_s = self.clock()
            except UnavailableError as error:
                if self.clock() - answered_s > self.patience_s:
                    raise
                self.say(f"the server is away, and is asked again: {error.found}")
            else:
                self._tell(run)
                if run.ended:
                    return self._judge(run)
            self.sleep(self.every_s)

    def _tell(self, run: RunState) -> None:
        if self._states.get("") != run.state:
            self._states[""] = run.state
            self.say(f"run {run.state.lower()}")
        for task in run.tasks:
            hidden = not task.name or task.name in _PARTS or task.name.endswith("-driver")
            if hidden or self._states.get(task.task_id) == task.state:
                continue
            self._states[task.task_id] = task.state
            name = self.names.get(task.name, task.name)
            self.say(f"{name}: {task.state.lower()}" + (f" ({task.message})" * bool(task.message)))
        for trouble in self._troubles(run):
            if trouble not in self._told:
                self._told.add(trouble)
                self.say(f"warning: pod {trouble[0]} cannot start: {trouble[1]}")

    def _troubles(self, run: RunState) -> list[tuple[str, str]]:
        if self.kube is None or run.ended:
            return []
        with contextlib.suppress(SssflowError, LookupError, PermissionError):
            return [(t.pod, t.reason) for t in troubles(self.kube.pods_of(run.run_id))]
        return []

    def _judge(self, run: RunState) -> RunState:
        counts = Counter(s for task, s in self._states.items() if task)
        if run.state in ("SUCCEEDED", "SKIPPED"):
            return run
        if run.state == "CANCELED":
            raise InterruptedRun(
                "The run was cancelled.",
                where=f"run {run.run_id}",
                action=f"`sssflow pipeline resume {run.run_id} ...` goes on: finished tasks are "
                "kept, and training continues from its newest checkpoint.",
            )
        code, reason, where = self._reason(run)
        raise kind_of(code)(
            f"The run failed: {reason}",
            where=where,
            found=", ".join(f"{n} {state.lower()}" for state, n in sorted(counts.items())),
            action=f"Correct the cause; `sssflow pipeline resume {run.run_id} ...` keeps what is "
            "finished.",
        )

    def _reason(self, run: RunState) -> tuple[int, str, str]:
        """Exit code, reason and where the log is."""
        failed = [task for task in run.tasks if task.state == "FAILED" and task.message]
        told = run.message or (failed[-1].message if failed else "the server tells no reason")
        where = f"run {run.run_id}"
        if self.kube is None:
            hint = f"kubectl logs -l pipeline/runid={run.run_id} -c main --tail=60 --prefix"
            return InternalError.exit_code, told, f"{where}; {hint}"
        with contextlib.suppress(SssflowError, LookupError, PermissionError):
            for pod in failed_pods(self.kube.pods_of(run.run_id)):
                found = reason_in(self.kube.log_tail(pod))
                where = f"{where}; kubectl -n {self.kube.namespace} logs {pod} -c main"
                if found is not None:
                    return found[0], found[1], where
        return InternalError.exit_code, told, where


def task_names(ir_path: Path) -> dict[str, str]:
    """Keys of the tasks of a compiled pipeline to the names that its author gave them."""
    ir = next(yaml.safe_load_all(ir_path.read_text(encoding="utf-8")))
    return {
        key: str(task["taskInfo"]["name"])
        for graph in graphs(ir)
        for key, task in graph["tasks"].items()
    }
