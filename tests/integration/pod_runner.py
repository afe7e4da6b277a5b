"""KFP's local orchestrator with every task a Kubernetes Job.

Called as `python pod_runner.py ORDER.json` in a process of its own, because KFP's local mode keeps
global state. Control flow, placeholders and outputs are KFP's; the command, the image and the
settings of each pod are the compiled pipeline's; files travel through S3.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pod_platform import (
    RESTRICTED,
    add_volume,
    apply_platform,
    executor_of,
    platform_of,
    resources,
    retries_of,
)

OUTPUTS = "/tmp/kfp"  # noqa: S108 - in the pod, on its own volume
MAIN = Path(__file__).with_name("pod_main.py").read_text("utf-8")


@dataclass(frozen=True)
class PodOrder:
    """What is to run, and how its pods look.

    Attributes:
        ir_path: Compiled pipeline, as it would be submitted.
        parameters: Its parameters.
        pipeline_root: Folder here that outputs of tasks come back to.
        result_path: Where the pipeline's outputs are written as JSON, on success only.
        namespace: Where the Jobs are made.
        run: Name of the run: a label of its pods, and part of the names of Jobs.
        outputs_uri: Where in S3 the outputs of tasks travel through.
        security: Pod security context.
        environment: Variables that every task gets beside its own.
    """

    ir_path: str
    parameters: dict[str, Any]
    pipeline_root: str
    result_path: str
    namespace: str
    run: str
    outputs_uri: str
    security: dict[str, Any]
    environment: dict[str, str]


class PodTask:
    """KFP's task handler that runs one task as a Job."""

    def __init__(
        self,
        order: PodOrder,
        image: str,
        full_command: list[str],
        pipeline_root: str,
        runner: object,
        env_vars: dict[str, str] | None = None,
    ) -> None:
        """Take what KFP hands to its handlers, `order` aside."""
        where = full_command.index("--executor_input") + 1
        output = Path(json.loads(full_command[where])["outputs"]["outputFile"])
        self._order = order
        self._image = image
        self._root = Path(pipeline_root)
        # Without the run's own folder, which KFP names by the time.
        place = output.parent.relative_to(self._root)
        self._folder = Path(*place.parts)
        self._task = place.name
        self._command = [part.replace(pipeline_root, OUTPUTS) for part in full_command]
        self._environment = {**order.environment, **(env_vars or {})}
        short = re.sub(r"[^a-z0-9]+", "-", "-".join(place.parts[1:]).lower())
        self._name = f"{order.run}-{short}"[:52] + _mark(str(place))

    def run(self) -> Any:
        """Make the Job, wait for its end, bring its outputs; KFP's status."""
        from kfp.local import status

        _kubectl(self._order, "apply", "-f", "-", stdin=json.dumps(self.job()))
        print(f"task {self._task}: job {self._name} Started", flush=True)
        ended = self._wait()
        print(f"task {self._task}: job {self._name} {ended}", flush=True)
        if ended != "Complete":
            return status.Status.FAILURE
        self._fetch()
        return status.Status.SUCCESS

    def job(self) -> dict[str, Any]:
        """The Job as Kubernetes takes it."""
        ir, platform = _documents(self._order.ir_path)
        order = self._order
        main = {
            "name": "main",
            "image": self._image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", MAIN],
            "args": [f"{order.outputs_uri}/{self._name}", OUTPUTS, *self._command],
            "env": [{"name": k, "value": v} for k, v in sorted(self._environment.items())],
            "securityContext": dict(RESTRICTED),
            "resources": resources(executor_of(ir, self._task)),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [],
        }
        # The third as KFP writes it: `sssflow pipeline watch` finds a run's pods by it.
        labels = {
            "sssflow-test/run": order.run,
            "sssflow-test/task": self._task,
            "pipeline/runid": order.run,
        }
        pod = {
            "metadata": {"labels": labels},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "securityContext": order.security,
                "containers": [main],
                "volumes": [],
            },
        }
        add_volume(pod, "tmp", "/tmp", {"emptyDir": {}})  # noqa: S108 - a mount point
        apply_platform(pod, platform_of(platform, self._task))
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": self._name, "labels": labels},
            "spec": {"backoffLimit": retries_of(ir, self._task), "template": pod},
        }

    def _wait(self) -> str:
        """`Complete` or `Failed`."""
        while True:
            text = _kubectl(self._order, "get", "job", self._name, "-o", "json")
            for condition in json.loads(text)["status"].get("conditions", ()):
                if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
                    return str(condition["type"])
            time.sleep(0.5)

    def _fetch(self) -> None:
        from sssflow.storage.places import open_place, pull_tree

        found = pull_tree(open_place(f"{self._order.outputs_uri}/{self._name}"), self._root)
        assert found is not None, "the pod left no outputs"
        file = self._root / self._folder / "executor_output.json"
        file.write_text(file.read_text("utf-8").replace(OUTPUTS, str(self._root)), "utf-8")


def _mark(text: str) -> str:
    return "-" + hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.lru_cache(maxsize=1)
def _documents(ir_path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    ir, *rest = yaml.safe_load_all(Path(ir_path).read_text("utf-8"))
    return ir, rest[0] if rest else {}


def _kubectl(order: PodOrder, *arguments: str, stdin: str = "") -> str:
    command = ["kubectl", "-n", order.namespace, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def main(order_path: Path) -> None:
    """Run the pipeline of an order; any failure leaves by exception."""
    from kfp import components, local
    from kfp.local import task_dispatcher

    order = PodOrder(**json.loads(order_path.read_text("utf-8")))
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=order.pipeline_root,
        raise_on_error=True,
    )
    task_dispatcher.subprocess_task_handler.SubprocessTaskHandler = functools.partial(
        PodTask, order
    )
    pipeline = components.load_component_from_file(order.ir_path)
    task = pipeline(**order.parameters)
    Path(order.result_path).write_text(json.dumps(dict(task.outputs)), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
