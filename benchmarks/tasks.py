"""What a task of the pipeline costs beside its work: start, imports, configuration, verification.

One run of the pipeline on a few phantoms fills the store; then the same run is made again: every
task starts, reads its configuration, finds its result, verifies it and ends. As many tasks that do
nothing, run by the same KFP, are what KFP's own part of it costs.

Processor time of all processes of a run, so that a busy machine counts less; wall time beside it.

Run: python benchmarks/tasks.py [--repeats 3] [--out benchmarks/results/tasks.md]
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from sssflow.pipeline.events import TaskEvent
from sssflow.pipeline.ir import compiled_pipeline
from sssflow.pipeline.local import run_local
from sssflow.pipeline.local_worker import WorkOrder
from sssflow.storage.atomic import write_text

STUDENT: dict[str, Any] = {
    "method": "supervised",
    "steps": 4,
    "network": {"base_channels": 4, "levels": 3},
    "preprocessing": {"size_hw": [32, 32]},
    "batch_labelled": 2,
    "batch_unlabelled": 2,
    "eval_every": 4,
    "threads": 1,
}
EXPERIMENT: dict[str, Any] = {
    "name": "overhead",
    "phantoms": {"patients": 8, "hearts": {"in_plane_px": [48, 56], "slices": [4, 5]}},
    "ingest": {"layout": "acdc", "split": {"labelled": 2, "validation": 1, "test": 1}},
    "warmup": STUDENT,
    "baseline": {**STUDENT, "steps": 5},
    "adapt": {"steps": 0},
    "sam": {"input_size": 64},
    "train": STUDENT,
    "evaluate": {"bootstrap_resamples": 100, "permutation_flips": 100},
    "pipeline": {"shards": 2},
}
WITHOUT_RESULT = ("plan_shards", "adapt_sam2")
"""The plan is made anew, and this experiment asks for no adaptation."""


@dsl.component(base_image="unused", install_kfp_package=False)
def nothing(config_json: str) -> str:
    return config_json


def spent(run: Callable[[], object]) -> tuple[float, float]:
    """Processor and wall seconds of a call, with those of its processes."""
    begin, begin_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run()
    end, end_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    cpu_s = end.ru_utime - begin.ru_utime + end.ru_stime - begin.ru_stime
    return cpu_s, end_s - begin_s


def ours(folder: Path) -> list[TaskEvent]:
    """One run of the pipeline; how its tasks ended."""
    ended: list[TaskEvent] = []

    def note(event: TaskEvent) -> None:
        if event.state in ("done", "reused", "failed"):
            ended.append(event)

    run_local(compiled_pipeline(), {"config_json": json.dumps(EXPERIMENT)}, folder, on_event=note)
    return ended


def compile_nothing(tasks: int, file: Path) -> None:
    """A pipeline of that many tasks which hand on a text."""

    @dsl.pipeline(name="nothing")
    def chain(config_json: str) -> str:
        text: Any = config_json
        for _ in range(tasks):
            text = nothing(config_json=text).output
        return text

    compiler.Compiler().compile(chain, str(file))


def run_nothing(file: Path, folder: Path) -> None:
    order = WorkOrder(
        ir_path=file,
        parameters={"config_json": json.dumps(EXPERIMENT)},
        pipeline_root=folder / "kfp",
        result_path=folder / "outputs.json",
    )
    path = folder / "order.json"
    path.write_text(order.model_dump_json(), "utf-8")
    command = [sys.executable, "-m", "sssflow.pipeline.local_worker", str(path)]
    here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": here})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = len(ours(folder / "run"))
        compile_nothing(tasks, folder / "nothing.yaml")
        rows = []
        for _ in range(options.repeats):
            ended: list[TaskEvent] = []
            with_work = spent(lambda: ended.extend(ours(folder / "run")))  # noqa: B023
            assert {e.state for e in ended if e.task not in WITHOUT_RESULT} == {"reused"}, ended
            without = spent(lambda: run_nothing(folder / "nothing.yaml", folder))
            rows.append((*with_work, *without))
    text = table(rows, tasks)
    print(text)
    if options.out:
        write_text(options.out, text)


def table(rows: list[tuple[float, ...]], tasks: int) -> str:
    medians = [statistics.median(column) / tasks for column in zip(*rows, strict=True)]
    lines = [
        f"# What a task costs beside its work\n\n{datetime.now(UTC):%Y-%m-%d}, "
        f"{platform.machine()} processor, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}. Made by `python benchmarks/tasks.py`.\n",
        f"{tasks} tasks, every one of which finds its result in the store and verifies it; beside "
        "them as many tasks that do nothing, by the same KFP. Seconds for each task, median of "
        f"{len(rows)} runs; the run's own start is shared out among them.\n",
        "| | processor, s | wall, s |\n| --- | --- | --- |",
        f"| ours | {medians[0]:.2f} | {medians[1]:.2f} |",
        f"| a task that does nothing | {medians[2]:.2f} | {medians[3]:.2f} |",
        f"| difference | {medians[0] - medians[2]:.2f} | {medians[1] - medians[3]:.2f} |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
