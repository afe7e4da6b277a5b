"""The boundary of a component: reuse, results that must exist, failures with their reason."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from pathlib import Path

import pytest
from run_outputs import record

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.model import Preprocessing, TrainedModel
from sssflow.errors import DataError, InterruptedRun, SssflowError, UnavailableError
from sssflow.pipeline.events import (
    EVENTS_FILE,
    EVENTS_FOLDER,
    EventLog,
    EventReader,
    listening_folder,
    request_stop,
)
from sssflow.pipeline.store import follow_pointer
from sssflow.pipeline.task import component_task, log_metrics
from sssflow.pipeline.whole import require_whole
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import reference


class StubArtifact:
    """As much of a KFP artifact as a task touches."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.metadata: dict[str, object] = {}
        self.logged: dict[str, float] = {}

    def log_metric(self, metric: str, value: float) -> None:
        self.logged[metric] = value


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where somebody listens, as a local run makes it in its temporary folder."""
    folder = tmp_path / "tmp" / EVENTS_FOLDER
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder.parent))
    return folder


def states(folder: Path) -> list[tuple[str, str, int]]:
    reader = EventReader.__new__(EventReader)
    reader._path, reader._offset = folder / EVENTS_FILE, 0
    return [(e.state, e.message, e.exit_code) for e in reader.new_events()]


def make(store: Path, manifest: DatasetManifest, artifact: StubArtifact) -> str:
    with component_task("ingest", "", str(store)) as task:
        out = task.folder({"x": "1"}) / "manifest.json"
        if not task.has(DatasetManifest, out):
            save_contract(manifest, out)
            (out.parent / "x").write_bytes(b"")  # all its images and labels
        return task.publish(DatasetManifest, out, artifact)


def test_a_task_hands_on_a_pointer_and_describes_it_in_the_artifact(tmp_path, manifest) -> None:
    artifact = StubArtifact(tmp_path / "artifact")
    pointer = make(tmp_path / "store", manifest, artifact)
    found, path = follow_pointer(DatasetManifest, pointer)
    assert found == manifest
    assert Path(artifact.path).read_text() == pointer + "\n"
    assert artifact.metadata["digest"] == manifest.digest
    assert artifact.metadata["at"] == path.as_uri()


def test_a_second_run_takes_the_first_one_s_result(tmp_path, manifest, listening) -> None:
    store = tmp_path / "store"
    first = make(store, manifest, StubArtifact(tmp_path / "1"))
    other = manifest.model_copy(update={"name": "other"})
    assert make(store, other, StubArtifact(tmp_path / "2")) == first
    assert [s for s, _, _ in states(listening) if s != "progress"] == [
        "started",
        "done",
        "started",
        "reused",
    ]


def test_a_damaged_result_is_made_again(tmp_path, manifest) -> None:
    store = tmp_path / "store"
    first = make(store, manifest, StubArtifact(tmp_path / "1"))
    _, path = follow_pointer(DatasetManifest, first)
    path.write_text("{")
    assert make(store, manifest, StubArtifact(tmp_path / "2")) == first


@pytest.mark.parametrize("content", [b"rotten", None])
def test_a_result_with_a_damaged_file_is_made_again_and_says_so(
    content: bytes | None, tmp_path, manifest, caplog
) -> None:
    """Its readers refuse it and say that the stage must run again: so it must."""
    store = tmp_path / "store"
    _, path = follow_pointer(DatasetManifest, make(store, manifest, StubArtifact(tmp_path / "1")))
    image = path.parent / "x"
    image.unlink() if content is None else image.write_bytes(content)
    make(store, manifest, StubArtifact(tmp_path / "2"))
    assert image.read_bytes() == b""
    assert "made again" in caplog.text


def test_a_training_is_whole_with_its_weights_and_without_its_checkpoints(tmp_path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"weights")
    model = TrainedModel(
        network={"name": "unet"},
        preprocessing=Preprocessing(),
        class_names=("background", "disc"),
        weights=reference(folder / "weights"),
        dataset_digest="0" * 64,
        method="supervised",
        step=1,
    )
    save_contract(model, folder / "model.json")
    gone = ObjectRef(uri="checkpoints/step_1/MANIFEST.json", size_bytes=1, sha256="0" * 64)
    made = record("supervised", reference(folder / "model.json", base=tmp_path))
    require_whole(made.model_copy(update={"checkpoints": (gone,)}), tmp_path)
    (folder / "weights").write_bytes(b"weighty")
    with pytest.raises(DataError, match="another content"):
        require_whole(made, tmp_path)


def fails(store: Path, error: BaseException, caplog) -> int:
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(SystemExit) as caught,
        component_task("train", "baseline", str(store)),
    ):
        raise error
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("Bad scan.", where="here", action="Mend it."), 65),
        (UnavailableError("Disk full."), 69),
        (InterruptedRun("Stopped."), 75),
    ],
)
def test_a_failure_ends_with_its_exit_code_and_its_whole_message_last(
    tmp_path, caplog, listening, error: SssflowError, code: int
) -> None:
    assert fails(tmp_path, error, caplog) == code
    assert caplog.records[-1].getMessage().endswith(error.describe())
    assert states(listening)[-1] == ("failed", error.describe(), code)


def test_a_bug_is_told_with_its_traceback_and_exit_code_70(tmp_path, caplog) -> None:
    assert fails(tmp_path, KeyError("surprise"), caplog) == 70
    assert "Traceback" in caplog.text
    assert "KeyError: 'surprise'" in caplog.records[-1].getMessage()
    assert "task train baseline" in caplog.records[-1].getMessage()


def test_a_full_disk_is_exit_code_69(tmp_path, caplog) -> None:
    assert fails(tmp_path, OSError(28, "No space left on device"), caplog) == 69


def test_ctrl_c_is_an_interruption(tmp_path, caplog) -> None:
    assert fails(tmp_path, KeyboardInterrupt(), caplog) == 75


def test_a_termination_signal_is_an_interruption(tmp_path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, component_task("ingest", "", str(tmp_path)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 75
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stage_that_ends_without_its_result_is_a_failure(tmp_path, caplog) -> None:
    with pytest.raises(SystemExit) as caught, component_task("ingest", "", str(tmp_path)) as task:
        task.publish(DatasetManifest, tmp_path / "never-written.json")
    assert caught.value.code == 70
    assert "without its result" in caplog.text


def test_a_store_that_cannot_be_reached_is_a_failure_with_a_reason(caplog, listening) -> None:
    with pytest.raises(SystemExit) as caught, component_task("ingest", "", "ftp://x/y"):
        pytest.fail("the body must not run")
    assert caught.value.code == 64
    assert "ftp://x/y" in caplog.text
    ((state, message, code),) = states(listening)
    assert (state, "ftp://x/y" in message, code) == ("failed", True, 64)


def test_without_a_listener_nothing_is_told_and_nothing_is_left(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    assert listening_folder() is None
    with component_task("ingest", "", str(tmp_path / "store")) as task:
        task.finish("ok")
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_no_task_begins_after_a_stop_was_requested(tmp_path, listening) -> None:
    request_stop(listening)
    with pytest.raises(SystemExit) as caught, component_task("ingest", "", str(tmp_path)):
        pytest.fail("the body must not run")
    assert caught.value.code == 75


def test_log_lines_of_the_rooms_become_progress(tmp_path, listening) -> None:
    with component_task("ingest", "", str(tmp_path)) as task:
        logging.getLogger("sssflow.ingest").info("case 1 of 9")
        logging.getLogger("elsewhere").info("not ours")
        task.finish("ok")
    assert states(listening) == [
        ("started", "", 0),
        ("progress", "case 1 of 9", 0),
        ("done", "ok", 0),
    ]


def test_only_finite_numbers_are_shown_on_the_run_page(tmp_path) -> None:
    artifact = StubArtifact(tmp_path / "m")
    log_metrics(artifact, {"dice": 0.5, "none": None, "nan": float("nan"), "inf": float("inf")})
    assert artifact.logged == {"dice": 0.5}


def test_a_half_written_event_waits_for_its_end(tmp_path) -> None:
    reader = EventReader(tmp_path)
    EventLog(tmp_path, "train", "warmup").write("started")
    path = tmp_path / EVENTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:10])
    assert [event.name for event in reader.new_events()] == ["train (warmup)"]
    path.write_bytes(whole + whole)
    assert len(reader.new_events()) == 1


def test_events_of_earlier_runs_are_not_told_again(tmp_path) -> None:
    log = EventLog(tmp_path, "train", "")
    log.write("started")
    reader = EventReader(tmp_path)
    log.write("done")
    assert [event.state for event in reader.new_events()] == ["done"]
