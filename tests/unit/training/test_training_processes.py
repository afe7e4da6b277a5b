"""`sssflow train --gpus 2` as a user, a cluster and bad luck start, stop and break it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from s3_server import free_port
from sssflow.cli.main import run
from sssflow.configuration import load_config
from sssflow.contracts.run import RunRecord
from sssflow.errors import UnavailableError
from sssflow.experiment import ExperimentConfig
from sssflow.storage.contracts import load_contract
from sssflow.training.launch import (
    Shape,
    ending,
    launch,
    node_command,
    train_together,
    wanted_while,
)

Command = Callable[..., list[str]]


@pytest.fixture
def command(tiny, tiny_config, tmp_path) -> Command:
    """Arguments of one training of 60 steps in two processes; OUT is the first argument."""
    config = tiny_config(
        steps=60, eval_every=60, checkpoint_every_steps=10, keep_last=9, method="unimatch_v2"
    )
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump({"train": config.model_dump(mode="json")}))

    def of(out: Path, gpus: int = 2) -> list[str]:
        return ["train", str(tiny.dataset), str(out), "-c", str(file), "--gpus", str(gpus)]

    return of


def start(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sssflow.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(out: Path, after: int, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of a step beyond `after` is there, or the process has ended."""
    while process.poll() is None:
        if any(int(p.name[5:]) > after for p in (out / "checkpoints").glob("step_????????")):
            return
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> dict[str, int]:
    """Rank to process id."""
    found = {}
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            variables = Path(f"/proc/{child}/environ").read_text().split("\0")
            found |= {v.removeprefix("RANK="): int(child) for v in variables if v[:5] == "RANK="}
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_on_one_or_two_machines_killed_and_stopped_end_with_the_same_bits(
    tiny, command, tmp_path, capsys
):
    # As Kubeflow Trainer tells two machines: here the whole run.
    port = str(free_port())
    machines = [
        start(
            command(tmp_path / "whole"),
            PET_NNODES="2",
            PET_NODE_RANK=rank,
            PET_MASTER_ADDR="127.0.0.1",
            PET_MASTER_PORT=port,
        )
        for rank in ("0", "1")
    ]
    said = [machine.communicate(timeout=600)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    record = load_contract(RunRecord, tmp_path / "whole" / "run.json")
    assert record.device.startswith("2 processes, each on cpu")

    # One machine, whose second process is killed.
    out = tmp_path / "cut"
    killed = start(command(out))
    wait_for_checkpoint(out, 0, killed)
    ranks = children(killed)
    os.kill(ranks["1"], signal.SIGKILL)
    text, _ = killed.communicate(timeout=600)
    assert killed.returncode == 69, text
    assert "Process 1 of the training ended before its time" in text
    assert "SIGKILL" in text
    assert "torch/distributed" not in text
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert sorted(ranks) == ["0", "1"]

    # Another number of processes would be another run.
    assert run(command(out, gpus=1)) == 64
    assert "processes: 2 -> 1" in capsys.readouterr().err

    stopped = start(command(out))
    wait_for_checkpoint(out, 10, stopped)
    stopped.send_signal(signal.SIGTERM)
    text, _ = stopped.communicate(timeout=600)
    assert stopped.returncode == 75, text
    assert "Training was stopped by SIGTERM after step" in text

    # As a task of the pipeline goes on, in a pod with two GPUs.
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    experiment = load_config(ExperimentConfig, tmp_path / "experiment.yaml", ["train.processes=2"])
    train_together(experiment, "train", tiny.dataset, out, Shape(2))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    weights = [tmp_path / name / "model" / "weights.safetensors" for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("codes", "exit_code", "what"),
    [
        ({0: 69, 1: -9}, 69, "Process 1 .* SIGKILL"),
        ({0: -15, 1: 1, 2: 69}, 69, "Process 1 .* exit code 1"),
        ({0: 69, 1: 69}, 69, "Process 0 .* exit code 69"),
        ({0: -15, 3: 65}, 65, "Process 3"),
        ({0: 65, 1: 64}, 64, "Process 1"),
        ({0: 75, 1: -15}, 75, "same command"),
        ({1: 70, 0: 75}, 70, "Process 1"),
    ],
)
def test_the_cause_is_told_and_not_what_followed_from_it(codes, exit_code, what):
    error = ending(codes)
    assert error.exit_code == exit_code
    assert re.search(what, str(error), re.DOTALL)


def test_machines_that_do_not_come_are_waited_for_no_longer_than_asked():
    shape = Shape(1, nodes=2, node=1, master=f"127.0.0.1:{free_port()}", timeout_s=2)
    with pytest.raises(UnavailableError, match="did not find each other"):
        launch("sssflow.cli", ["--version"], shape)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--nodes", "3"],
        ["--nodes", "2", "--node-rank", "2", "--master-addr", "a"],
        ["--nodes", "2"],
    ],
)
def test_machines_that_cannot_share_the_processes_are_refused(wrong, command, tmp_path, capsys):
    assert run([*command(tmp_path / "out"), *wrong]) == 64
    assert "cannot share the processes" in capsys.readouterr().err


def test_a_dry_run_starts_nothing(command, tmp_path, capsys):
    assert run([*command(tmp_path / "out"), "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.fixture
def terminated() -> Iterator[threading.Event]:
    """Set when SIGTERM comes to this process."""
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    yield came
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("text", [None, "1"], ids=["absent", "still"])
def test_a_training_whose_pulse_stands_still_is_ended(text, terminated, tmp_path):
    pulse = tmp_path / "pulse"
    if text is not None:
        pulse.write_text(text)
    with wanted_while(pulse, patience_s=0.2):
        assert terminated.wait(60)


def test_a_training_whose_pulse_beats_goes_on(terminated, tmp_path):
    pulse = tmp_path / "pulse"
    with wanted_while(pulse, patience_s=60):
        pulse.write_text("1")
    with wanted_while(None):
        pass
    assert not terminated.is_set()


def test_the_command_of_a_machine_reads_the_same_settings(tiny_config, tmp_path):
    experiment = ExperimentConfig(train=tiny_config(processes=2, method="sss"))
    out = tmp_path / "run"
    command = node_command(
        experiment, "train", tmp_path / "d", out, masks=[tmp_path / "m"], start=tmp_path / "s"
    )
    assert command[:4] == ["python", "-m", "sssflow.cli", "train"]
    told = dict(zip(command[6::2], command[7::2], strict=True))
    assert told["--section"] == "train"
    assert told["--masks"] == str(tmp_path / "m")
    assert told["--start"] == str(tmp_path / "s")
    assert load_config(ExperimentConfig, Path(told["--config"])).digest() == experiment.digest()
    other = ExperimentConfig(train=tiny_config(processes=2))
    assert "--masks" not in node_command(
        other, "train", tmp_path / "d", out, masks=[tmp_path / "m"]
    )
    assert not out.exists()
