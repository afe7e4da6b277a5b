"""What a run of 10 k and of 1 M slices would take: shards, Triton replicas, hours, S3 requests.

A simulation, event by event, of the fan-out: pods that start one after another behind KFP's limit,
fetch their cases, keep some requests at Triton under way, write their masks, are killed now and
then and go on from the last finished case. The rates are assumptions, printed beside the result
with where each comes from; put your own in their place with --set NAME=VALUE.

Run: python benchmarks/scale.py [--set replicas=4] [--out benchmarks/results/scale.md]
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import DatasetManifest, Grid, Modality, Role, UnlabelledCase
from sssflow.pipeline.config import PipelineConfig
from sssflow.pipeline.shards import plan_shards
from sssflow.storage.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
TASKS_OUTSIDE_THE_LOOP = 8
WORKFLOW_LIMIT_BYTES = 1 << 20
# Counted by tests/unit/storage/test_storage_requests.py on a real S3 server.
REQUESTS_PER_FILE_DOWN = 2
REQUESTS_PER_FILE_UP = 3


def assumed(value: float, source: str) -> float:
    """A field that --set may change, with the reason for its value."""
    found: float = field(default=value, metadata={"source": source})
    return found


@dataclass(frozen=True)
class Assumptions:
    """Rates and sizes. Times in s, sizes in bytes."""

    slices_per_case: float = assumed(10, "ACDC has 6 to 18")
    bytes_per_slice: float = assumed(131_072, "256 x 256 at 2 bytes")
    mask_bytes_per_slice: float = assumed(20_000, "soft masks of 4 classes, compressed")
    shards: float = assumed(50, "the most that pipeline.shards allows")
    pods: float = assumed(20, "GPU-less pods that run at a time")
    replicas: float = assumed(4, "Triton servers with one GPU each")
    encode_s: float = assumed(0.011, "sam2's own benchmark: tiny, A100, bf16, 91 images/s")
    prompt_s: float = assumed(0.001, "decoder on the same GPU; not measured")
    around_s: float = assumed(0.02, "resize and pack masks on the pod's core; not measured")
    concurrency: float = assumed(8, "sam.triton.concurrency")
    task_s: float = assumed(14, "KFP's driver and executor pods, recorded on a real backend")
    pods_started_per_s: float = assumed(0.5, "driver pods of one workflow; not measured")
    s3_file_s: float = assumed(0.05, "three round trips and the bytes; not measured")
    files_at_a_time: float = assumed(8, "storage/places.py")
    kills_per_pod_hour: float = assumed(0.05, "preemption of cheap nodes; not measured")


@dataclass
class Outcome:
    """What one simulated fan-out took."""

    wall_s: float = 0.0
    busy_gpu_s: float = 0.0
    longest_queue: int = 0
    kills: int = 0
    slices_redone: int = 0


class Cluster:
    """Pods, Triton's queue and a clock. Events are (time, order, action)."""

    def __init__(self, a: Assumptions, cases_of_shards: list[int], seed: int = 0) -> None:
        self.a, self.out, self.rng = a, Outcome(), random.Random(seed)  # noqa: S311 - a simulation
        self.now_s = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.queue: deque[Pod] = deque()
        self.free_servers = int(a.replicas)
        self.waiting = deque(Pod(self, cases) for cases in cases_of_shards)
        self.next_start_s = 0.0
        for _ in range(min(int(a.pods), len(self.waiting))):
            self.start_next()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self.events, (self.now_s + delay_s, next(self.order), action))

    def run(self) -> Outcome:
        """To the end of the last pod."""
        while self.events:
            self.now_s, _, action = heapq.heappop(self.events)
            action()
        return self.out

    def start_next(self) -> None:
        """A pod's place is free."""
        if self.waiting:
            self.begin(self.waiting.popleft())

    def begin(self, pod: Pod) -> None:
        """Pods start one after another, each with KFP's cost of a task."""
        self.next_start_s = max(self.next_start_s, self.now_s) + 1 / self.a.pods_started_per_s
        self.after(self.next_start_s - self.now_s + self.a.task_s, pod.fetch)

    def ask(self, pod: Pod) -> None:
        """A request arrives at Triton."""
        self.queue.append(pod)
        self.out.longest_queue = max(self.out.longest_queue, len(self.queue))
        self.serve()

    def serve(self) -> None:
        """Free servers take what waits."""
        while self.free_servers and self.queue:
            pod = self.queue.popleft()
            self.free_servers -= 1
            service_s = self.a.encode_s + self.a.prompt_s
            self.out.busy_gpu_s += service_s
            life = pod.life
            self.after(service_s, lambda pod=pod, life=life: self.served(pod, life))  # type: ignore[misc]

    def served(self, pod: Pod, life: int) -> None:
        """A server is free; the answer is lost if its pod was killed meanwhile."""
        self.free_servers += 1
        if life == pod.life:
            pod.answered()
        self.serve()


class Pod:
    """One shard. Its finished cases survive a kill; the case in work does not."""

    def __init__(self, cluster: Cluster, cases: int) -> None:
        self.cluster, self.cases_left = cluster, cases
        self.life = 0
        self.to_ask = self.to_finish = self.under_way = 0
        self.core_free_s = 0.0

    def fetch(self) -> None:
        """Begin to live, with a death drawn, and fetch the cases that are left."""
        a = self.cluster.a
        self.life += 1
        kill_s = (
            self.cluster.rng.expovariate(a.kills_per_pod_hour / 3600)
            if a.kills_per_pod_hour
            else float("inf")
        )
        if kill_s < float("inf"):
            life = self.life
            self.cluster.after(kill_s, lambda: self.killed(life))
        fetch_s = self.cases_left * a.s3_file_s / a.files_at_a_time
        self.cluster.after(fetch_s, self.next_case_of(self.life))

    def next_case_of(self, life: int) -> Callable[[], None]:
        """The step to the next case, for this life alone."""
        return lambda: self.next_case() if life == self.life else None

    def next_case(self) -> None:
        """Begin a case, or end."""
        if not self.cases_left:
            self.life += 1
            self.cluster.out.wall_s = self.cluster.now_s
            self.cluster.start_next()
            return
        self.to_ask = self.to_finish = int(self.cluster.a.slices_per_case)
        self.under_way = 0
        self.fill()

    def fill(self) -> None:
        """Keep so many requests under way as are allowed."""
        while self.to_ask and self.under_way < self.cluster.a.concurrency:
            self.to_ask -= 1
            self.under_way += 1
            self.cluster.ask(self)

    def answered(self) -> None:
        """One mask is here; the pod has one core for what is done around it."""
        cluster, life = self.cluster, self.life
        self.core_free_s = max(self.core_free_s, cluster.now_s) + cluster.a.around_s
        cluster.after(self.core_free_s - cluster.now_s, lambda: self.finished(life))
        self.under_way -= 1
        self.fill()

    def finished(self, life: int) -> None:
        """One slice is done, and with the last one its case."""
        if life != self.life:
            return
        self.to_finish -= 1
        if not self.to_finish:
            self.cases_left -= 1
            write_s = self.cluster.a.s3_file_s / self.cluster.a.files_at_a_time
            self.cluster.after(write_s, self.next_case_of(self.life))

    def killed(self, life: int) -> None:
        """Lose the case in work and begin again."""
        if life != self.life:
            return
        self.life += 1
        self.cluster.out.kills += 1
        self.cluster.out.slices_redone += int(self.cluster.a.slices_per_case) - self.to_finish
        self.cluster.begin(self)


def dataset(cases: int) -> DatasetManifest:
    """A manifest of unlabelled cases of equal size, as ingest would write it."""
    ref = ObjectRef(uri="images/x.b2nd", size_bytes=1, sha256="0" * 64)
    grid = Grid(
        shape_shw=(10, 256, 256),
        spacing_shw_mm=(8.0, 1.5, 1.5),
        affine_ras=tuple(tuple(float(i == j) for j in range(4)) for i in range(4)),
    )
    drawn = tuple(
        UnlabelledCase(
            case_id=f"case{i:07}",
            patient_id=f"patient{i:07}",
            image=ref,
            grid=grid,
            modality=Modality.MR,
            role=Role.UNLABELLED,
        )
        for i in range(cases)
    )
    return DatasetManifest(
        name="drawn",
        source_layout="drawn",
        class_names=("background", "a"),
        source_digest="0" * 64,
        split_rule="drawn",
        cases=drawn,
    )


def rows(slices: int, a: Assumptions) -> Iterator[tuple[str, str]]:
    """The lines of the table for one size."""
    cases = int(slices / a.slices_per_case)
    manifest = dataset(cases)
    shards = plan_shards(
        manifest,
        PipelineConfig(shards=int(a.shards), scored_roles=()),
        dataset="D" * 200,
        run="R" * 200,
    )
    items_bytes = sum(len(shard.to_line()) for shard in shards)
    ir_bytes = (ROOT / "pipelines" / "sss_training.yaml").stat().st_size
    # The cut is even to one case; to work it out for every shard would take its square.
    shares = [cases // len(shards) + (i < cases % len(shards)) for i in range(len(shards))]
    got = Cluster(a, shares).run()
    down = 2 * cases * REQUESTS_PER_FILE_DOWN  # by prompts and by inference
    up = 2 * cases * REQUESTS_PER_FILE_UP
    images_gib = slices * a.bytes_per_slice / 2**30
    yield "slices, cases", f"{slices:,}, {cases:,}"
    yield "shards, tasks of the run", f"{len(shards)}, {TASKS_OUTSIDE_THE_LOOP + 2 * len(shards)}"
    yield (
        "pipeline and loop items, kB (limit of a workflow object, kB)",
        f"{(ir_bytes + items_bytes) / 1e3:.0f} ({WORKFLOW_LIMIT_BYTES / 1e3:.0f})",
    )
    yield "manifest, MB", f"{len(manifest.to_json()) / 1e6:.1f}"
    yield "SAM-2 inference, wall hours", f"{got.wall_s / 3600:.2f}"
    yield (
        "GPU hours paid, used",
        f"{a.replicas * got.wall_s / 3600:.1f}, {got.busy_gpu_s / 3600:.1f}",
    )
    yield "longest queue at Triton", f"{got.longest_queue} requests"
    yield "pods killed, slices done again", f"{got.kills}, {got.slices_redone}"
    yield "S3 requests of prompts and inference", f"{down + up:,}"
    yield (
        "S3 bytes down, up, GiB",
        f"{2 * images_gib:.1f}, {slices * a.mask_bytes_per_slice / 2**30:.1f}",
    )
    yield (
        "images in the memory of the training pod, GiB (float32)",
        f"{slices * 256**2 * 4 / 2**30:.1f}",
    )


def report(a: Assumptions, sizes: tuple[int, ...]) -> str:
    columns = [list(rows(size, a)) for size in sizes]
    lines = ["Simulated by `python benchmarks/scale.py`; nothing here was run at this size.", ""]
    lines += ["| | " + " | ".join("run" for _ in sizes) + " |", "| --- |" + " --- |" * len(sizes)]
    lines += [
        f"| {cells[0][0]} | " + " | ".join(value for _, value in cells) + " |"
        for cells in zip(*columns, strict=True)
    ]
    lines += ["", "Replicas of Triton, and wall hours of SAM-2 inference for the largest size:", ""]
    lines += ["| replicas | wall hours | GPU hours paid | GPUs busy |", "| --- | --- | --- | --- |"]
    for count in (1, 2, 4, 8, 16):
        b = replace(a, replicas=count)
        cases = int(sizes[-1] / b.slices_per_case)
        got = Cluster(b, [cases // int(b.shards)] * int(b.shards)).run()
        paid = count * got.wall_s
        cells = (str(count), f"{got.wall_s / 3600:.2f}", f"{paid / 3600:.1f}")
        lines.append(f"| {' | '.join(cells)} | {got.busy_gpu_s / paid:.0%} |")
    lines += ["", "| assumed | value | why |", "| --- | --- | --- |"]
    lines += [f"| {f.name} | {getattr(a, f.name):g} | {f.metadata['source']} |" for f in fields(a)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--sizes", default="10000,1000000")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    changes = dict(text.split("=", 1) for text in arguments.set)
    a = replace(Assumptions(), **{name: float(value) for name, value in changes.items()})
    text = report(a, tuple(int(size) for size in arguments.sizes.split(",")))
    print(text)
    if arguments.out:
        write_text(arguments.out, text)


if __name__ == "__main__":
    main()
