"""What the tasks of a local run tell the process that started it: one JSON line per event.

The run gives its tasks a temporary folder of their own and makes a folder for events in it; on a
cluster there is no such folder, and nothing is told.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from sssflow.contracts.base import Record

EVENTS_FOLDER = "sssflow-events"
EVENTS_FILE = "events.jsonl"
_STOP_FILE = "stop"

State = Literal["started", "progress", "done", "reused", "failed"]


class TaskEvent(Record):
    """One event of one task.

    Attributes:
        task: Name of the component.
        label: Which of its uses, for example `baseline` or `unlabelled 1/2`; may be empty.
        state: `reused` is `done` without work: the result was there.
        message: Newest log line, place of the result, or the whole reason of a failure.
        exit_code: 0 unless the state is `failed`.
        time_s: Seconds since the epoch.
    """

    task: str
    label: str
    state: State
    message: str = ""
    exit_code: int = 0
    time_s: float

    @property
    def name(self) -> str:
        """Task and label as one name."""
        return f"{self.task} ({self.label})" if self.label else self.task


class EventLog:
    """Appends events of one task to a file that several processes share.

    Args:
        folder: Where the file lies; None: nobody listens.
        task: Name of the component.
        label: Which of its uses.
    """

    def __init__(self, folder: Path | None, task: str, label: str) -> None:
        self._path = None if folder is None else folder / EVENTS_FILE
        self._task = task
        self._label = label

    def write(self, state: State, message: str = "", exit_code: int = 0) -> None:
        """Append one event with a single write, so that lines of two processes never mix."""
        if self._path is None:
            return
        event = TaskEvent(
            task=self._task,
            label=self._label,
            state=state,
            message=message,
            exit_code=exit_code,
            time_s=time.time(),
        )
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, event.model_dump_json().encode() + b"\n")
        finally:
            os.close(descriptor)


class EventReader:
    """Reads the events that were added since the last look."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS_FILE
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def new_events(self) -> list[TaskEvent]:
        """Complete lines since the last call; a line that cannot be read is left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete, separator, _ = data.rpartition(b"\n")
        self._offset += len(complete) + len(separator)
        events = []
        for line in complete.splitlines():
            try:
                events.append(TaskEvent.model_validate_json(line))
            except ValidationError:
                continue
        return events


def listening_folder() -> Path | None:
    """The folder of events of the local run that this process is a task of; None outside one."""
    folder = Path(tempfile.gettempdir()) / EVENTS_FOLDER
    return folder if folder.is_dir() else None


def request_stop(folder: Path) -> None:
    """Let no task of this run begin; KFP's loops go on after a failure or a signal."""
    (folder / _STOP_FILE).touch()


def stop_requested(folder: Path | None) -> bool:
    """Whether no task may begin."""
    return folder is not None and (folder / _STOP_FILE).exists()
