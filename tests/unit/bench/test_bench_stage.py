"""A whole benchmark on drawn discs, in processes of its own: stop, go on, fail apart, compare."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sssflow.bench import stage
from sssflow.bench.config import BenchConfig
from sssflow.bench.protocol import Protocol, load_protocol
from sssflow.bench.scores import GroupRow
from sssflow.contracts.bench import BenchRecord, RunFailure, RunResult
from sssflow.errors import DataError, DataProblems, InterruptedRun, UnavailableError, UsageError
from sssflow.evaluation.aggregate import Resampling
from sssflow.storage.contracts import load_contract
from sssflow.storage.lock import locked

SUPERVISED, FAILING = "supervised-default-l2-s1", "semisam-default-l2-s1"


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / stage.CSV_FILE).read_text("utf-8"))))


def stop_once_there(folder: Path, pattern: str) -> threading.Thread:
    """Send SIGTERM to this process, which runs the benchmark, when `folder` has such a file."""

    def wait() -> None:
        until_s = time.monotonic() + 300
        while not list(folder.glob(pattern)) and time.monotonic() < until_s:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_benchmark_stops_goes_on_fails_apart_and_compares(
    tiny_protocol: Protocol, tiny_bench: BenchConfig, whole: Path, tmp_path: Path
) -> None:
    """One story, because every start of a process costs seconds."""
    inputs = stage.Inputs(dataset=whole)
    # semisam alone opens the generalist's weights, so that run alone fails.
    lines = ("generalist.weights=nowhere", "train.steps=150", "train.checkpoint_every_steps=5")
    alone = tiny_bench.model_copy(update={"methods": ("supervised",), "settings": lines})
    checkpoints = "trainings/*/checkpoints/step_*"
    thread = stop_once_there(tmp_path, checkpoints)
    with pytest.raises(InterruptedRun, match="0 of 1 runs are there"):
        stage.run(tiny_protocol, alone, inputs, tmp_path)
    thread.join()
    record = load_contract(BenchRecord, tmp_path / stage.RECORD_FILE)
    assert record.missing == (SUPERVISED,) or SUPERVISED in record.failures
    reached = max(int(path.name[-8:]) for path in tmp_path.glob(checkpoints))
    assert 0 < reached < 150

    both = alone.model_copy(update={"methods": ("supervised", "semisam"), "parallel": 2})
    with pytest.raises(DataError, match="1 of 2 runs failed"):
        stage.run(tiny_protocol, both, inputs, tmp_path)
    log = (tmp_path / "runs" / SUPERVISED / "log.txt").read_text("utf-8")
    assert "Traceback" not in log
    record = load_contract(BenchRecord, tmp_path / stage.RECORD_FILE)
    assert set(record.results) == {SUPERVISED}
    assert list(record.failures) == [FAILING]
    failure = load_contract(RunFailure, tmp_path / "runs" / FAILING / "failure.json")
    assert failure.exit_code == 65
    page = (tmp_path / stage.TABLE_FILE).read_text("utf-8")
    assert "## Runs without a result" in page
    assert "Dataset: discs (layout drawn)." in page
    assert FAILING in page
    assert "Measured on the validation patients, which also chose each model's step" in page
    assert "every run of this page was made with `generalist.weights=nowhere`, `train.st" in page

    finished = tmp_path / "runs" / SUPERVISED / "result.json"
    before = finished.stat().st_mtime_ns
    record = stage.run(tiny_protocol, alone, inputs, tmp_path)
    assert finished.stat().st_mtime_ns == before, "a finished run is taken over"
    assert record.failures == {}
    result = load_contract(RunResult, finished)
    assert result.steps_in_all == 150
    assert result.roles == ("validation",)
    assert [row["status"] for row in rows(tmp_path) if row["seed"]] == ["done"]

    changed = alone.model_copy(update={"settings": (*lines, "train.optimiser.learning_rate=0.001")})
    with pytest.raises(UsageError, match="1 of 1 runs failed"):
        stage.run(tiny_protocol, changed, inputs, tmp_path)
    assert finished.stat().st_mtime_ns == before, "another run's result is not overwritten"


def test_the_data_come_from_one_place(
    tiny_protocol: Protocol, tiny_bench: BenchConfig, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no scans"):
        stage.run(tiny_protocol, tiny_bench, stage.Inputs(), tmp_path)


def test_data_of_another_folder_or_packed_otherwise_are_not_taken_for_these(
    tiny_protocol: Protocol,
    tiny_bench: BenchConfig,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed: list[Path] = []

    def pack(config: object, source: Path, out: Path) -> None:
        packed.append(source)
        shutil.copytree(whole.parent, out)

    monkeypatch.setattr(stage.ingest, "run", pack)
    monkeypatch.setattr(stage.Pool, "run", lambda *_: None)
    first = stage.Inputs(source=tmp_path / "first")
    for _ in range(2):
        stage.run(tiny_protocol, tiny_bench, first, tmp_path / "out")
    assert packed == [tmp_path / "first"]
    with pytest.raises(UsageError, match="another source"):
        stage.run(tiny_protocol, tiny_bench, stage.Inputs(tmp_path / "second"), tmp_path / "out")
    other = tiny_bench.model_copy(update={"settings": ("ingest.name=other",)})
    with pytest.raises(UsageError, match="other settings"):
        stage.run(tiny_protocol, other, first, tmp_path / "out")
    roles = tmp_path / "roles.json"
    by_file = tiny_bench.model_copy(update={"settings": (f"ingest.split.file={roles}",)})
    roles.write_text('{"test": []}')
    stage.run(tiny_protocol, by_file, first, tmp_path / "by-file")
    roles.write_text('{"test": ["a"]}')
    with pytest.raises(UsageError, match="other settings"):
        stage.run(tiny_protocol, by_file, first, tmp_path / "by-file")


def test_a_folder_of_drawn_phantoms_may_be_moved(
    tiny_bench: BenchConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[Path] = []

    def pack(config: object, source: Path, out: Path) -> None:
        packed.append(source)
        shutil.copytree(whole.parent, out)

    monkeypatch.setattr(stage.ingest, "run", pack)
    monkeypatch.setattr(stage.phantoms, "run", lambda config, out: None)
    monkeypatch.setattr(stage.Pool, "run", lambda *_: None)
    protocol = load_protocol("phantoms-lite")
    stage.run(protocol, tiny_bench, stage.Inputs(), tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    stage.run(protocol, tiny_bench, stage.Inputs(), tmp_path / "moved")
    (note,) = tmp_path.glob("moved/data/*/origin.json")
    text = note.read_text("utf-8")
    # As versions before wrote it: the place where the scans lay then.
    note.write_text(text.replace('"source": "phantoms"', '"source": "/away/data/all-s1/scans"'))
    stage.run(protocol, tiny_bench, stage.Inputs(), tmp_path / "moved")
    assert packed == [tmp_path / "first" / "data" / "all-s1" / "scans"]
    other = tiny_bench.model_copy(update={"settings": ("phantoms.patients=9",)})
    with pytest.raises(UsageError, match="other settings"):
        stage.run(protocol, other, stage.Inputs(), tmp_path / "moved")


def test_copies_under_two_roles_are_refused_unless_the_settings_accept_them(
    tiny_protocol: Protocol,
    tiny_bench: BenchConfig,
    with_copy: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage.Pool, "run", lambda *_: None)
    inputs = stage.Inputs(dataset=with_copy("c", "d"))
    with pytest.raises(DataProblems, match="so many labels"):
        stage.run(tiny_protocol, tiny_bench, inputs, tmp_path / "out")
    accepted = tiny_bench.model_copy(update={"settings": ("ingest.copies=note",)})
    assert stage.run(tiny_protocol, accepted, inputs, tmp_path / "out").missing


def test_a_second_benchmark_into_the_same_folder_is_refused_and_leaves_it_alone(
    tiny_protocol: Protocol, tiny_bench: BenchConfig, whole: Path, tmp_path: Path
) -> None:
    with locked(tmp_path / ".lock"), pytest.raises(UnavailableError, match="Another benchmark"):
        stage.run(tiny_protocol, tiny_bench, stage.Inputs(dataset=whole), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_settings_that_do_not_fit_are_refused_before_any_run(
    tiny_protocol: Protocol, tiny_bench: BenchConfig, whole: Path, tmp_path: Path
) -> None:
    wrong = tiny_bench.model_copy(update={"settings": ("train.step=5",)})
    with pytest.raises(UsageError, match="steps"):
        stage.run(tiny_protocol, wrong, stage.Inputs(dataset=whole), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_of_intervals_and_tests_reach_the_rows(
    tiny_protocol: Protocol,
    tiny_bench: BenchConfig,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Resampling, int]] = []

    def group(runs: object, resampling: Resampling, flips: int) -> list[GroupRow]:
        asked.append((resampling, flips))
        return []

    monkeypatch.setattr(stage.Pool, "run", lambda *_: None)
    monkeypatch.setattr(stage, "group_rows", group)
    values = {"bootstrap_resamples": 300, "confidence": 0.9, "seed": 5, "permutation_flips": 400}
    lines = tuple(f"evaluate.{name}={value}" for name, value in values.items())
    config = tiny_bench.model_copy(update={"settings": lines})
    stage.run(tiny_protocol, config, stage.Inputs(dataset=whole), tmp_path)
    assert asked == [(Resampling(300, 0.9, 5), 400)]
    page = (tmp_path / stage.TABLE_FILE).read_text("utf-8")
    assert "90 % percentile bootstrap interval over patients, 300 resamples, seed 5" in page
