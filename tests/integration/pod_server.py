"""The API of a KFP server whose runs are pods: what `sssflow pipeline submit` sends is what runs.

It takes the place of KFP where a cluster has none. It keeps no cache and knows no drivers: each run
is one process of `pod_runner`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kfp_server_api import V2beta1RunDetails
from pipeline_site import PipelineRun, PipelineSite

from kfp_server import FakeKfp, Request, kfp_server, task

_STATES = {"Started": "RUNNING", "Complete": "SUCCEEDED", "Failed": "FAILED"}
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED")


@dataclass
class PodServer(FakeKfp):
    """The server of one site; `started` are its runs by their ID."""

    site: PipelineSite | None = None
    started: dict[str, PipelineRun] = field(default_factory=dict)

    def make_run(self, request: Request) -> tuple[int, Any]:
        status, made = super().make_run(request)
        if status == 200:
            assert self.site is not None
            parameters = made.runtime_config.parameters
            self.started[made.run_id] = self.site.launch(
                made.run_id, made.pipeline_spec, parameters
            )
        return status, made

    def get_run(self, request: Request, run_id: str) -> tuple[int, Any]:
        status, told = super().get_run(request, run_id)
        if status == 200 and told.state not in _ENDED:
            self._look(told, self.started[run_id])
        return status, told

    def end_run(self, request: Request, run_id: str) -> tuple[int, Any]:
        answer = super().end_run(request, run_id)
        if run_id in self.started:
            run = self.started[run_id]
            run.stop()
            run.site.kubectl("delete", "jobs", "-l", f"sssflow-test/run={run.name}")
        return answer

    def _look(self, told: Any, run: PipelineRun) -> None:
        """Write into the run how it stands."""
        code = run.process.poll()
        if told.state == "CANCELING":
            told.state = "CANCELED"
        elif code is None:
            told.state = "RUNNING"
        else:
            told.state = "FAILED" if code else "SUCCEEDED"
        states = dict.fromkeys(re.findall(r"^\s*task (\S+): job (\S+) (\w+)$", run.log(), re.M))
        details = {job: task(job, name, _STATES[word]) for name, job, word in states}
        told.run_details = V2beta1RunDetails(task_details=list(details.values()))


@contextmanager
def pod_server(site: PipelineSite) -> Iterator[PodServer]:
    """A running server; its runs end with it."""
    server = PodServer(site=site)
    with kfp_server(server):
        try:
            yield server
        finally:
            for run in server.started.values():
                run.stop()
