"""Running compiled pipelines on this machine: reasons, exit codes, interruption, and the whole."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("kfp")

from kfp import compiler, dsl

from sssflow.errors import DataError, InternalError, InterruptedRun, UnavailableError, UsageError
from sssflow.ingest.phantoms.config import HeartConfig, PhantomConfig
from sssflow.ingest.phantoms.stage import run as draw_phantoms
from sssflow.pipeline import ir
from sssflow.pipeline.events import TaskEvent
from sssflow.pipeline.local import LOG_FILE, run_local
from sssflow.storage.lock import locked

IMAGE = "python-placeholder:none"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def say(text: str, store_uri: str) -> str:
    from sssflow.pipeline.task import component_task

    with component_task("say", text, store_uri) as task:
        task.finish("said")
    return text


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def refuse(text: str, store_uri: str) -> str:
    from sssflow.errors import DataError
    from sssflow.pipeline.task import component_task

    with component_task("refuse", "", store_uri):
        raise DataError("The scan is broken.", where=text, action="Mend it.")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def vanish(text: str, store_uri: str) -> str:
    import os

    print("about to vanish", flush=True)
    os._exit(9)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def wait(text: str, store_uri: str) -> str:
    import time

    from sssflow.pipeline.task import component_task

    with component_task("wait", "", store_uri):
        time.sleep(60)
    return text


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tell_group(text: str, store_uri: str) -> str:
    import os
    import time
    from pathlib import Path

    from sssflow.pipeline.task import component_task

    with component_task("tell_group", "", store_uri):
        Path(text).with_suffix(".draft").write_text(str(os.getpgrp()))
        Path(text).with_suffix(".draft").rename(text)
        time.sleep(60)
    return text


def compiled(folder: Path, component: object) -> Path:
    @dsl.pipeline(name="one-then-another")
    def both(store_uri: str, text: str = "here") -> str:
        first = component(text=text, store_uri=store_uri)
        return say(text=first.output, store_uri=store_uri).output

    path = folder / "ir.yaml"
    compiler.Compiler().compile(both, str(path))
    return path


def run(folder: Path, component: object, parameters: dict[str, str] | None = None):
    events: list[TaskEvent] = []
    work = folder / "work with a space"
    try:
        run_local(compiled(folder, component), parameters or {}, work, on_event=events.append)
    finally:
        run.events = events
    return events


def test_a_failed_task_ends_the_run_with_its_kind_and_its_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, refuse, {"text": "scan-17"})
    message = caught.value.describe()
    assert "The task refuse failed: The scan is broken." in message
    assert "where: scan-17" in message
    assert "next: Mend it." in message
    assert str(tmp_path / "work with a space" / LOG_FILE) in message
    assert [event.state for event in run.events] == ["started", "failed"]


def test_a_task_that_vanishes_without_a_word_is_a_failure_with_the_end_of_the_log(tmp_path) -> None:
    with pytest.raises(InternalError) as caught:
        run(tmp_path, vanish)
    assert "without a reason" in caught.value.describe()
    assert "FAILURE" in caught.value.describe()
    assert "about to vanish" in (tmp_path / "work with a space" / LOG_FILE).read_text()


def test_a_run_whose_results_are_missing_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="without all of its results") as caught:
        run(tmp_path, say)
    assert "bundle" in caught.value.found
    assert [e.name for e in run.events if e.state == "done"] == ["say (here)", "say (here)"]


def test_a_parameter_that_names_the_interpreter_arrives_unchanged(tmp_path: Path) -> None:
    text = "/data/python3/scans with 'quotes' and \"more\""
    with pytest.raises(InternalError, match="without all of its results"):
        run(tmp_path, say, {"text": text})
    assert run.events[-1].label == text


def test_a_termination_signal_stops_the_run_as_resumable(tmp_path: Path) -> None:
    seen: list[TaskEvent] = []

    def stop_when_it_waits(event: TaskEvent) -> None:
        seen.append(event)
        if event.state == "started":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRun) as caught:
        run_local(compiled(tmp_path, wait), {}, tmp_path / "work", on_event=stop_when_it_waits)
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == before
    assert [(event.state, event.exit_code) for event in seen] == [("started", 0), ("failed", 75)]


def living(group: int) -> list[str]:
    """Command lines of the processes of a group that have not ended.

    One that has no command line any more has given its memory back: it is ending.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, of_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append((process / "cmdline").read_text())
    return [line for line in found if line]


def group_of(told: Path) -> int:
    """The group that a task told of, which its worker leads."""
    while not told.exists():
        time.sleep(0.05)
    return int(told.read_text())


def test_a_worker_that_the_system_kills_leaves_no_task_behind(tmp_path: Path) -> None:
    told = tmp_path / "group"
    groups: list[int] = []

    def kill_the_worker(event: TaskEvent) -> None:
        groups.append(group_of(told))
        os.kill(groups[0], signal.SIGKILL)

    given = {"text": str(told)}
    with pytest.raises(InternalError, match="without a reason"):
        run_local(compiled(tmp_path, tell_group), given, tmp_path / "w", on_event=kill_the_worker)
    assert living(groups[0]) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_run_that_is_killed_or_loses_its_terminal_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The folder is free for the next run when the last task of this one has ended, not before."""
    told = tmp_path / "group"
    program = (
        "import sys; from pathlib import Path; from sssflow.pipeline.local import run_local;"
        "run_local(Path(sys.argv[1]), {'text': sys.argv[2]}, Path(sys.argv[3]))"
    )
    arguments = [str(compiled(tmp_path, tell_group)), str(told), str(tmp_path / "w")]
    with subprocess.Popen([sys.executable, "-c", program, *arguments]) as starter:
        group = group_of(told)
        starter.send_signal(number)
    with locked(tmp_path / "w" / ".lock"):
        assert living(group) == []


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    work = tmp_path / "work with a space"
    work.mkdir()
    with (work / ".lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match="Another run"):
            run(tmp_path, say)


def test_without_kfp_the_message_says_what_to_install(tmp_path, monkeypatch) -> None:
    path = compiled(tmp_path, say)
    monkeypatch.setitem(sys.modules, "kfp", None)
    with pytest.raises(UsageError) as caught:
        run_local(path, {}, tmp_path / "work")
    assert "pip install 'sssflow[kfp]'" in caught.value.describe()


def test_a_pipeline_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        run_local(tmp_path / "none.yaml", {}, tmp_path / "work")


TINY = {
    "name": "tiny",
    "phantoms": {
        "patients": 5,
        "seed": 1,
        "difficulty": 0.0,
        "hearts": {"in_plane_px": [40, 48], "slices": [3, 3]},
    },
    "ingest": {"layout": "acdc", "split": {"labelled": 2, "validation": 1, "test": 1}},
    "adapt": {"steps": 1},
    "sam": {"input_size": 64},
    "evaluate": {"bootstrap_resamples": 100, "permutation_flips": 100},
    "pipeline": {"shards": 1},
}
STUDENT = {
    "network": {"base_channels": 4, "levels": 3},
    "preprocessing": {"size_hw": [32, 32]},
    "steps": 6,
    "batch_labelled": 2,
    "batch_unlabelled": 2,
    "eval_every": 3,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_flow_runs_on_tiny_phantoms_and_a_second_run_finds_it_done(
    tmp_path: Path,
) -> None:
    experiment = {
        **TINY,
        "warmup": {"method": "supervised", **STUDENT},
        "baseline": {"method": "supervised", **STUDENT},
        "train": {"method": "sss", **STUDENT},
    }
    parameters = {"config_json": json.dumps(experiment)}
    events: list[TaskEvent] = []
    out = tmp_path / "out"
    result = run_local(
        ir.compiled_pipeline(), parameters, tmp_path / "work", out=out, on_event=events.append
    )
    assert [model.name for model in result.summary.models] == ["supervised", "sss"]
    assert result.runs["headline"].steps == 6
    assert result.bundle.model_digest == result.summary.models[-1].model_digest
    for name in ("metrics/summary.json", "metrics/cases.csv", "bundle/student.onnx"):
        assert (out / name).is_file(), name
    assert result.report == out / "report.html"
    assert sorted(p.name for p in (out / "tensorboard").iterdir()) == [
        "baseline",
        "headline",
        "warmup",
    ]
    finished = [event.name for event in events if event.state in ("done", "reused")]
    assert "sam2_inference (validation 1/1)" in finished
    # Equal settings: the baseline is the warm-up and was not trained again.
    assert [e.state for e in events if e.name == "train (baseline)"][-1] == "reused"

    again: list[TaskEvent] = []
    second = run_local(
        ir.compiled_pipeline(), parameters, tmp_path / "work", out=out, on_event=again.append
    )
    assert {e.state for e in again if e.state != "progress"} == {"started", "reused", "done"}
    assert [e.task for e in again if e.state == "done"] == ["plan_shards"]
    assert second.summary == result.summary
    assert second.bundle == result.bundle


@pytest.mark.slow
def test_a_broken_scan_ends_the_whole_flow_with_exit_code_65_and_its_name(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    phantoms = PhantomConfig(patients=4, hearts=HeartConfig(in_plane_px=(32, 32), slices=(3, 3)))
    draw_phantoms(phantoms, scans)
    broken = sorted(scans.rglob("*patient002*frame*.nii.gz"))[0]
    broken.write_bytes(broken.read_bytes()[:200])
    parameters = {
        "config_json": json.dumps({"ingest": {"layout": "acdc", "split": {"labelled": 1}}}),
        "source": str(scans),
    }
    events: list[TaskEvent] = []
    with pytest.raises(DataError) as caught:
        run_local(ir.compiled_pipeline(), parameters, tmp_path / "work", on_event=events.append)
    assert caught.value.exit_code == 65
    assert broken.name in caught.value.describe()
    assert not (tmp_path / "work" / "results").exists()
    assert {event.task for event in events} == {"ingest"}
