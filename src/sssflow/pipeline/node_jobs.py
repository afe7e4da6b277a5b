"""One training on several machines: started or adopted, followed to its end, and taken away.

The task that does this holds no GPU. If it is killed, its next try finds the machines at work and
follows them. If no try comes, they notice that the pulse has stopped (`sssflow train --pulse`),
write a checkpoint and end by themselves; and what is left goes with the pod that owns it.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sssflow.errors import (
    DataError,
    InternalError,
    InterruptedRun,
    SssflowError,
    UnavailableError,
    UsageError,
)
from sssflow.pipeline.cluster_objects import Cluster, Object
from sssflow.pipeline.config import NodesConfig
from sssflow.pipeline.kube import troubles
from sssflow.pipeline.nodes import (
    MADE_FROM,
    Order,
    headless_service,
    indexed_job,
    order,
    train_job,
)
from sssflow.storage.atomic import disk_errors

_PODS = {
    "TrainJob": "jobset.sigs.k8s.io/jobset-name",
    "Job": "batch.kubernetes.io/job-name",
}
"""Label of the pods, with the name of the object."""

_PERSONS_BUSINESS: tuple[type[SssflowError], ...] = (UsageError, DataError, InternalError)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How often is looked, and how long is waited.

    Attributes:
        poll_s: Between two looks.
        outage_s: How long the API may be away before the task gives up; the machines go on.
        removal_s: How long machines may take to end.
        telling_s: Between two lines about machines that do not start.
    """

    poll_s: float = 5.0
    outage_s: float = 300.0
    removal_s: float = 180.0
    telling_s: float = 60.0


def run_on_nodes(cluster: Cluster, wanted: Order, pulse: Path, pace: Pace = Pace()) -> None:
    """Have the machines of `wanted` run their command, to the end.

    Machines that are lost are started again, `attempts` times in all; the command goes on from its
    newest checkpoint.

    Args:
        cluster: Where.
        wanted: What.
        pulse: File, seen by the machines too, that is rewritten at every look.
        pace: How often.

    Raises:
        UsageError: The command ended with 64, a right is missing, or the deadline has passed.
        DataError: The command ended with 65.
        InternalError: The command ended with 70, or the cluster refuses the objects.
        UnavailableError: Machines were lost too often, or the API is away. In the second case
            they go on, and the same call adopts them.
        InterruptedRun: This process was told to stop; the machines are taken away.
    """
    kind = _kind(cluster, wanted)
    follower = _Follower(cluster, wanted, kind, pulse, pace)
    for attempt in range(1, wanted.config.attempts + 1):
        try:
            follower.start_or_adopt()
            error = follower.follow()
        except (InterruptedRun, KeyboardInterrupt):
            follower.remove()
            raise
        follower.remove()
        if error is None:
            return
        if attempt == wanted.config.attempts or isinstance(error, _PERSONS_BUSINESS):
            raise error
        _LOG.warning("start %d of %d failed: %s", attempt, wanted.config.attempts, error)


def train_on_nodes(
    config: NodesConfig, command: Sequence[str], processes: int, folder: Path
) -> None:
    """`run_on_nodes` for the training into `folder`, from within a pod of the cluster.

    Args:
        config: The machines.
        command: What each of them runs; the option --pulse is added.
        processes: On all machines together.
        folder: Of the run; it names the training and must be on the claim.

    Raises:
        SssflowError: See `run_on_nodes`.
    """
    cluster = Cluster.of_this_pod()
    pulse = folder.parent / f".{folder.name}.pulse"
    told = (*command, "--pulse", str(pulse))
    pod = socket.gethostname()
    wanted = order(config, cluster.namespace, told, processes, str(folder), launcher=pod)
    try:
        run_on_nodes(cluster, wanted, pulse)
    finally:
        pulse.unlink(missing_ok=True)


def _kind(cluster: Cluster, wanted: Order) -> str:
    if wanted.config.kind == "auto":
        return "TrainJob" if cluster.has_train_jobs() else "Job"
    return "TrainJob" if wanted.config.kind == "trainjob" else "Job"


class _Follower:
    """The objects of one training, from start to removal."""

    def __init__(self, cluster: Cluster, wanted: Order, kind: str, pulse: Path, pace: Pace) -> None:
        self._cluster, self._wanted, self._kind = cluster, wanted, kind
        self._pulse, self._pace = pulse, pace
        self._beats = 0
        self._told = float("-inf")

    def start_or_adopt(self) -> None:
        """Find the machines of an earlier try of this task at work, or start new ones."""
        made = train_job(self._wanted) if self._kind == "TrainJob" else indexed_job(self._wanted)
        found = self._cluster.find(self._kind, self._wanted.name)
        if found is not None and not _is_of(found, made):
            self.remove()
            found = None
        owners = self._own_pod()
        self._beat()
        if found is None:
            made["metadata"]["ownerReferences"] = owners
            found = self._cluster.create(made)
            _LOG.info("started %s %s", self._kind, self._wanted.name)
        else:
            self._cluster.hand_over(self._kind, self._wanted.name, owners)
            _LOG.info("adopted %s %s of an earlier try", self._kind, self._wanted.name)
        if self._kind == "Job":
            service = headless_service(self._wanted)
            service["metadata"]["ownerReferences"] = [_owner(found)]
            self._cluster.create(service)

    def follow(self) -> SssflowError | None:
        """Wait for the end; the error that it ended with, None for success.

        Raises:
            UnavailableError: The API is away for too long.
        """
        answered = time.monotonic()
        while True:
            self._beat()
            try:
                found = self._cluster.find(self._kind, self._wanted.name)
                if found is None:
                    return UnavailableError(
                        "Somebody deleted the machines of the training.", where=self._wanted.name
                    )
                ending = _condition(found)
                if ending is not None:
                    return None if ending["type"] == "Complete" else self._failure(ending)
                self._tell()
                answered = time.monotonic()
            except UnavailableError:
                if time.monotonic() - answered > self._pace.outage_s:
                    raise
            time.sleep(self._pace.poll_s)

    def remove(self) -> None:
        """Take the machines away, and wait until they are gone."""
        name = self._wanted.name
        self._cluster.delete(self._kind, name)
        if self._kind == "Job":
            self._cluster.delete("Service", name)
        until = time.monotonic() + self._pace.removal_s
        while self._cluster.find(self._kind, name) is not None:
            if time.monotonic() > until:
                raise UnavailableError(
                    "The machines of an ended training do not go away.",
                    where=f"{self._kind} {name}",
                    expected=f"within {self._pace.removal_s:g} s",
                    action="Look at its pods; then run the same command again.",
                )
            time.sleep(min(1.0, self._pace.poll_s))

    def _own_pod(self) -> list[Object]:
        """This task's pod as owner; none where it cannot be found by its host name."""
        pod = self._cluster.find("Pod", self._wanted.launcher) if self._wanted.launcher else None
        return [] if pod is None else [_owner({"apiVersion": "v1", "kind": "Pod", **pod})]

    def _beat(self) -> None:
        self._beats += 1
        # In place, not by the atomic writer: a beat that is read half is another text, so a beat.
        with disk_errors(self._pulse):
            self._pulse.write_text(f"{time.time_ns()} {self._beats}\n", encoding="ascii")

    def _tell(self) -> None:
        """A line now and then about machines that do not start."""
        if time.monotonic() - self._told < self._pace.telling_s:
            return
        self._told = time.monotonic()
        pods = self._pods()
        phases = [str(pod.get("status", {}).get("phase", "Pending")) for pod in pods]
        running = sum(phase in ("Running", "Succeeded") for phase in phases)
        _LOG.info("%d of %d machines run", running, self._wanted.config.nodes)
        for found in troubles(pods):
            _LOG.warning("%s: %s", found.pod, found.reason)

    def _pods(self) -> list[Object]:
        return self._cluster.pods(f"{_PODS[self._kind]}={self._wanted.name}")

    def _failure(self, ending: Object) -> SssflowError:
        reason = f"{ending.get('reason', '')}: {ending.get('message', '')}"
        if ending.get("reason") == "DeadlineExceeded":
            return UsageError(
                "The training took longer than its machines may run.",
                where="deadline_s",
                found=self._wanted.config.deadline_s,
                action="Raise it and run the same command again; the checkpoint is kept.",
            )
        codes = _exit_codes(self._pods())
        for kind in _PERSONS_BUSINESS:
            for pod, code in codes.items():
                if code == kind.exit_code:
                    return kind(
                        f"A machine of the training ended with exit code {code}.",
                        where=pod,
                        found=_last_lines(self._cluster.log_tail(pod)),
                        action="Its own message is above.",
                    )
        told = ", ".join(f"{pod}: exit code {code}" for pod, code in codes.items())
        return UnavailableError(
            "Machines of the training ended before their time.",
            where=self._wanted.name,
            found=told or reason,
            action="Run the same command again; it goes on from the newest checkpoint.",
        )


def _is_of(found: Object, made: Object) -> bool:
    """Whether an object was made from the same order and has neither failed nor been deleted."""
    metadata = found["metadata"]
    same = (
        metadata.get("annotations", {}).get(MADE_FROM) == made["metadata"]["annotations"][MADE_FROM]
    )
    ending = _condition(found)
    failed = ending is not None and ending["type"] == "Failed"
    return same and not failed and "deletionTimestamp" not in metadata


def _condition(found: Object) -> Object | None:
    """The condition that says how an object ended; None while it has not."""
    for condition in found.get("status", {}).get("conditions", ()):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return None


def _owner(found: Object) -> Object:
    return {
        "apiVersion": found["apiVersion"],
        "kind": found["kind"],
        "name": found["metadata"]["name"],
        "uid": found["metadata"]["uid"],
    }


def _exit_codes(pods: Sequence[Object]) -> dict[str, int]:
    """Of the pods whose container ended with a failure."""
    codes = {}
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses", ()):
            code = container.get("state", {}).get("terminated", {}).get("exitCode", 0)
            if code:
                codes[str(pod["metadata"]["name"])] = int(code)
    return codes


def _last_lines(text: str) -> str:
    return "\n    ".join(["", *text.strip().splitlines()[-15:]])
