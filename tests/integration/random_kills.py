"""Kills the first two pods of every task of a run, each at a random moment of its life."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline_site import PipelineRun

KILL = (
    "import os; mine = os.getpid(); "
    "[os.kill(int(p), 9) for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, mine)]"
)
"""Ends every process of a container but the first, which then reports the task's end."""

KILLS_PER_JOB = 2
TASK = "sssflow-test/task"
JOB = "batch.kubernetes.io/job-name"


def lives_s(pods: list[dict[str, Any]]) -> dict[str, float]:
    """Task to the median time that its pods ran and went well."""
    found: dict[str, list[float]] = {}
    for pod in pods:
        for status in pod["status"].get("containerStatuses", ()):
            ended = status["state"].get("terminated", {})
            if ended.get("exitCode") == 0:
                begin, end = (
                    datetime.fromisoformat(ended[key]) for key in ("startedAt", "finishedAt")
                )
                task = pod["metadata"]["labels"][TASK]
                found.setdefault(task, []).append((end - begin).total_seconds())
    return {task: statistics.median(times) for task, times in found.items()}


@dataclass
class Killer:
    """Kills the first `KILLS_PER_JOB` pods of every Job of a run.

    Attributes:
        run: The run.
        lives: Task to how long its pods live; the moment is drawn evenly from that time.
        chance: Draws moments and means: the processes of the pod, or the pod itself.
        killed: Task to the number of pods that were killed before they ended.
        late: Task to the number of pods that had ended before their moment came.
    """

    run: PipelineRun
    lives: Mapping[str, float]
    chance: random.Random
    killed: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    _moments_s: dict[str, float] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)
    _kills: Counter[str] = field(default_factory=Counter)

    def work(self) -> None:
        """Look and kill until the run has ended."""
        while self.run.process.poll() is None:
            for pod in self.run.pods():
                self._consider(pod)
            time.sleep(0.2)

    def start(self) -> threading.Thread:
        """`work` in a thread of its own."""
        thread = threading.Thread(target=self.work, daemon=True)
        thread.start()
        return thread

    def _consider(self, pod: dict[str, Any]) -> None:
        meta, phase = pod["metadata"], pod["status"]["phase"]
        labels, name = meta["labels"], meta["name"]
        job, task = labels[JOB], labels[TASK]
        if name in self._done or phase == "Pending" or self._kills[job] == KILLS_PER_JOB:
            return
        if phase != "Running":
            self._done.add(name)
            self.late[task] += 1
            return
        now_s = time.monotonic()
        moment_s = self._moments_s.setdefault(
            name, now_s + self.chance.uniform(0.0, self.lives[task])
        )
        if now_s >= moment_s:
            self._done.add(name)
            self._kills[job] += 1
            self._kill(name, task)

    def _kill(self, name: str, task: str) -> None:
        site = self.run.site
        if self.chance.random() < 0.5:
            site.kubectl("delete", "pod", name, "--grace-period=0", "--force", check=False)
        else:
            site.kubectl("exec", name, "--", "python3", "-c", KILL, check=False)
        self.killed[task] += 1
