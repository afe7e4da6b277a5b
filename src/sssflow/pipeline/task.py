"""The boundary of a component: inputs by pointer, a folder by content, failures with their reason.

A component's body is a `with component_task(...)` block; everything that all components share is
here, so that their own text is wiring only.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol, TypeVar

from sssflow.contracts.base import Contract
from sssflow.errors import DataError, InternalError, InterruptedRun, SssflowError
from sssflow.pipeline.events import EventLog, listening_folder, stop_requested
from sssflow.pipeline.store import Store, program_digest
from sssflow.storage.atomic import disk_errors
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import sha256_file

K = TypeVar("K", bound=Contract)

_PROGRESS_EVERY_S = 1.0
_logger = logging.getLogger(__name__)


class Artifact(Protocol):
    """The part of a KFP artifact that a task fills."""

    metadata: dict[str, Any]

    @property
    def path(self) -> str:
        """Local file that becomes the artifact."""


class MetricsArtifact(Protocol):
    """The part of KFP's scalar metrics that a task fills."""

    def log_metric(self, metric: str, value: float) -> None:
        """Show one number on the run page."""


class Task:
    """One run of one component.

    Args:
        name: Name of the component.
        store: Where results lie.
        events: Where progress is told.
    """

    def __init__(self, name: str, store: Store, events: EventLog) -> None:
        self._name = name
        self._store = store
        self._events = events
        self._reused = False

    def read(
        self,
        kind: type[K],
        pointer: str,
        files_of: Callable[[K], Collection[str]] | None = None,
    ) -> tuple[K, Path]:
        """The contract that an input points to, checked by digest, and its path.

        Of a store in S3 the files beside it are brought too: all, or those that `files_of` names.
        """
        return self._store.follow(kind, pointer, files_of)

    def read_all(self, kind: type[K], pointers: Sequence[str]) -> list[tuple[K, Path]]:
        """`read` for each pointer."""
        return [self.read(kind, pointer) for pointer in pointers]

    def folder(self, inputs: Mapping[str, str]) -> Path:
        """Folder of this task's result; `inputs` are the digests of all that decides it.

        It holds what earlier tries have left: all of the result, or a part that the stage takes up.
        """
        folder = self._store.folder(self._name, inputs)
        self._store.bring(folder)
        return folder

    def file_digest(self, path: str | None) -> str:
        """SHA-256 of a file that a setting names by path; empty without one.

        A path says nothing of what lies there: without this digest among the `inputs` of
        `folder`, a file replaced under its old name would give the old result.

        Raises:
            DataError: The file cannot be read.
        """
        if path is None:
            return ""
        try:
            return sha256_file(Path(path))
        except OSError as error:
            raise DataError(
                "A file that the settings name cannot be read.",
                where=path,
                found=error.strerror,
                action="Correct the path, or put the file there.",
            ) from None

    def has(self, kind: type[Contract], path: Path) -> bool:
        """Whether an earlier run finished this very result (its contract is written last).

        A contract that cannot be read, or whose files are not those that it names, counts as
        absent: the stage writes it again. If the answer is no, the folder of `path` is kept safe
        from then on.
        """
        try:
            self._store.require_whole(load_contract(kind, path), path)
        except DataError as error:
            if path.exists():
                _logger.warning("The result that is there is made again.\n%s", error)
            self._reused = False
            self._store.begin(path.parent)
            return False
        _logger.info("The result is there already: %s", path)
        self._reused = True
        return True

    def publish(self, kind: type[Contract], path: Path, artifact: Artifact | None = None) -> str:
        """Check that the result exists, describe it in `artifact`, and give its pointer.

        Raises:
            InternalError: The stage ended without writing it.
        """
        if not path.is_file():
            raise InternalError(
                "A stage ended without its result.", where=path, expected=kind.schema_name
            )
        contract = load_contract(kind, path)
        if not self._reused:
            self._store.finish(path.parent)
        pointer = self._store.pointer(contract, path)
        if artifact is not None:
            Path(artifact.path).parent.mkdir(parents=True, exist_ok=True)
            Path(artifact.path).write_text(pointer + "\n", encoding="utf-8")
            artifact.metadata.update(
                {
                    "kind": kind.schema_name,
                    "digest": contract.digest,
                    "at": self._store.address(path),
                }
            )
        self.finish(str(path))
        return pointer

    def finish(self, message: str) -> None:
        """Tell that the task is done."""
        self._events.write("reused" if self._reused else "done", message)


def log_metrics(artifact: MetricsArtifact, metrics: Mapping[str, float | None]) -> None:
    """Show finite numbers on the run page, sorted by name; the others cannot be shown there."""
    for name, value in sorted(metrics.items()):
        if value is not None and math.isfinite(value):
            artifact.log_metric(name, float(value))


@contextlib.contextmanager
def component_task(name: str, label: str, store_uri: str) -> Iterator[Task]:
    """Run a component's body; a failure ends the process with its exit code.

    The last lines of the log are then the whole message. SIGTERM and Ctrl-C become
    `InterruptedRun` unless the stage handles them itself (training does, to save its state).

    Raises:
        SystemExit: The body failed; the code is that of the error's kind.
    """
    listening = listening_folder()
    events = EventLog(listening, name, label)
    with _exit_on_failure(name, label, events):
        store = Store(store_uri, program=program_digest())
    with contextlib.closing(store), _exit_on_failure(name, label, events), disk_errors(store.root):
        if stop_requested(listening):
            raise InterruptedRun("The task did not begin: the run is being stopped.")
        events.write("started")
        with _interruptible(), _progress_from_logs(events):
            yield Task(name, store, events)


@contextlib.contextmanager
def _exit_on_failure(name: str, label: str, events: EventLog) -> Iterator[None]:
    try:
        yield
    except SssflowError as error:
        _fail(error, events)
    except KeyboardInterrupt:
        _fail(InterruptedRun(f"The task {name} {label}".strip() + " was stopped."), events)
    except Exception as error:
        _logger.error("Unexpected failure.\n%s", traceback.format_exc())
        _fail(
            InternalError(
                f"Unexpected failure: {type(error).__name__}: {error}",
                where=f"task {name} {label}".strip(),
                action="Please report it with the log.",
            ),
            events,
        )


def _fail(error: SssflowError, events: EventLog) -> NoReturn:
    message = error.describe()
    with contextlib.suppress(OSError):
        events.write("failed", message, error.exit_code)
    _logger.error("%s (exit %d): %s", error.kind, error.exit_code, message)
    sys.stdout.flush()
    sys.exit(error.exit_code)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise InterruptedRun(
            "The task was stopped.",
            found=signal.Signals(number).name,
            action="Run the same command again: finished tasks are kept.",
        )

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: a test, or an embedding program
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _ProgressHandler(logging.Handler):
    """Turns log records into progress events, at most one per second."""

    def __init__(self, events: EventLog) -> None:
        super().__init__(level=logging.INFO)
        self._events = events
        self._last_s = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s < _PROGRESS_EVERY_S:
            return
        self._last_s = now_s
        with contextlib.suppress(OSError):
            self._events.write("progress", record.getMessage())


@contextlib.contextmanager
def _progress_from_logs(events: EventLog) -> Iterator[None]:
    logger = logging.getLogger("sssflow")
    handler = _ProgressHandler(events)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
