"""A training process that is killed outright, at any moment, ends where an unharmed one does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sssflow.configuration import dump_yaml
from sssflow.training import stage

PROGRAM = """
import sys
from pathlib import Path
from sssflow.configuration import load_config
from sssflow.errors import SssflowError
from sssflow.training import stage
from sssflow.training.config import TrainConfig
config, dataset, out = map(Path, sys.argv[1:])
try:
    stage.run(load_config(TrainConfig, config), dataset, out)
except SssflowError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def start(config: Path, dataset: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(config), str(dataset), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )


def wait_for_checkpoint(out: Path, after: set[str], process: subprocess.Popen[bytes]) -> set[str]:
    """Wait until a checkpoint that is not in `after` is there, or the process has ended."""
    while process.poll() is None:
        found = {path.name for path in (out / "checkpoints").glob("step_*")}
        if found - after:
            return found
        time.sleep(0.02)
    return after


@pytest.fixture
def settings(tiny_config, tmp_path):
    config = tiny_config(
        steps=40, eval_every=20, checkpoint_every_steps=5, keep_last=8, method="unimatch_v2"
    )
    file = tmp_path / "train.yaml"
    file.write_text(dump_yaml(config))
    return config, file


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigkill_at_several_moments_leaves_the_weights_bit_equal(settings, tiny, tmp_path):
    config, file = settings
    stage.run(config, tiny.dataset, tmp_path / "whole")
    rng = random.Random(0)
    out, seen, kills = tmp_path / "cut", set(), 0
    for _ in range(2):
        process = start(file, tiny.dataset, out)
        seen |= wait_for_checkpoint(out, seen, process)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    final = start(file, tiny.dataset, out)
    _, errors = final.communicate(timeout=600)
    assert final.returncode == 0, errors.decode()
    assert kills >= 1
    weights = "model/weights.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert not list(out.rglob("*sssflow-tmp*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_75_and_the_same_command_resumes(
    number, settings, tiny, tmp_path
):
    _, file = settings
    process = start(file, tiny.dataset, tmp_path / "out")
    wait_for_checkpoint(tmp_path / "out", set(), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 75, errors.decode()
    assert b"Run the same command again" in errors
    again = start(file, tiny.dataset, tmp_path / "out")
    _, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors.decode()
