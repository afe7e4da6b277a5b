"""Runs that share a GPU: what they say of its memory, when one more starts, who tries again."""

from __future__ import annotations

import errno
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sssflow.bench import pool as pools
from sssflow.bench import worker as workers
from sssflow.bench.pool import Pool, _Worker
from sssflow.bench.worker import FAILURE_FILE, STATUS_FILE, Status
from sssflow.contracts.bench import RunFailure, RunKey
from sssflow.errors import DataError, UnavailableError
from sssflow.networks.memory import volume_fits
from sssflow.storage.contracts import load_contract, save_contract

GIB = 1 << 30
SILENT: dict[str, object] = {"gpu": {"free_gib": 0.0, "held_gib": 0.0}}


def holds(held_gib: float, free_gib: float) -> dict[str, object]:
    return {"gpu": {"free_gib": free_gib, "held_gib": held_gib}}


class Said(_Worker):
    """A worker that has said what is given."""

    def __init__(self, said: dict[str, object]) -> None:
        self.said = said

    def status(self) -> dict[str, object]:
        return self.said


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ([], True),
        ([{}], False),  # it has not said yet what it holds
        ([SILENT], False),  # nor has this one computed anything
        ([{"message": "x", "gpu": None}], True),  # CPU
        ([{"message": "x", "gpu": None}, {}], False),
        ([holds(2.0, 3.6)], True),  # 1.25 * 2 + 1 = 3.5
        ([holds(2.0, 3.4)], False),
        ([holds(1, 9), holds(4, 5)], False),
        ([holds(2.0, 7.1), SILENT], True),  # and as much for the silent one
        ([holds(2.0, 6.9), SILENT], False),
        ([holds(2.0, 6.9), {}], False),
    ],
)
def test_a_further_run_is_started_only_while_the_gpu_has_room(
    said: list[dict[str, object]], allowed: bool
) -> None:
    pool = Pool(4, 0.1)
    pool._running = [Said(one) for one in said]
    assert pool._memory_allows() is allowed


def test_a_run_says_nothing_of_a_gpu_before_it_has_computed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: held[0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 * GIB, 79 * GIB))
    monkeypatch.setattr(workers, "_STATUS_EVERY_S", -1.0)

    def said(**how: bool) -> Any:
        Status(tmp_path / STATUS_FILE, **how).say("step 1")
        return json.loads((tmp_path / STATUS_FILE).read_text())["gpu"]

    assert said() == SILENT["gpu"]
    held[0] = 5 * GIB
    assert said() == {"free_gib": 70.0, "held_gib": 5.0}
    assert said(may_use_gpu=False) is None


def order(out: Path) -> Any:
    key = RunKey(method="supervised", variant=out.name, labelled=1, seed=1)
    out.mkdir()
    devices = SimpleNamespace(device="auto")
    return SimpleNamespace(
        key=key, out=out, digest="0" * 64, threads=0,
        experiment=SimpleNamespace(train=devices, evaluate=devices),
    )  # fmt: skip


def test_of_runs_that_die_of_memory_at_once_each_is_tried_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, int]] = []
    pool = Pool(2, 0.01)

    def start(order: Any) -> _Worker:
        """Together they die, alone one ends well and one dies again."""
        started.append((order.key.variant, len(pool._running)))
        again = [name for name, _ in started].count(order.key.variant) > 1
        if again and order.key.variant == "a":
            (order.out / "result.json").write_text("{}")
        else:
            save_contract(
                RunFailure(
                    key=order.key, order_digest=order.digest, kind="out of GPU memory",
                    exit_code=69, message="CUDA out of memory", out_of_memory=True,
                ),
                order.out / FAILURE_FILE,
            )  # fmt: skip
        (order.out / STATUS_FILE).write_text('{"message": "x", "gpu": null}')
        ended = subprocess.Popen(["true"] if again else ["sleep", "0.3"], stdin=subprocess.PIPE)
        return _Worker(order, ended, io.BytesIO())

    monkeypatch.setattr(pools, "_start", start)
    done: list[str] = []
    orders = [order(tmp_path / name) for name in "ab"]
    # Both are gone at the first look after the second was started.
    reap = Pool._reap

    def wait_and_reap(self: Pool, done: Callable[[Any], object]) -> None:
        if len(self._running) == 2:
            for worker in self._running:
                worker.process.wait()
        reap(self, done)

    monkeypatch.setattr(Pool, "_reap", wait_and_reap)
    pool.run(orders, lambda order: done.append(order.key.variant))
    assert started == [("a", 0), ("b", 1), ("a", 0), ("b", 0)]
    assert done == ["a"]
    assert [failure.key.variant for failure in pool.failures] == ["b"]


def in_a_volume() -> None:
    with volume_fits("case"):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def in_cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")


def in_the_context() -> None:
    raise RuntimeError("CUDA error: out of memory")


def in_the_data() -> None:
    with volume_fits("case"):
        raise MemoryError


def elsewhere() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("fault", "code", "out_of_memory"),
    [
        (in_a_volume, 65, True),
        (in_cublas, 69, True),
        (in_the_context, 69, True),
        (in_the_data, 65, False),
        (elsewhere, 70, False),
    ],
)
def test_a_worker_tells_a_gpu_that_refused_memory_from_other_faults(
    fault: Callable[[], None], code: int, out_of_memory: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = order(tmp_path / "run")
    (tmp_path / "order.json").write_text("{}")
    monkeypatch.setattr(workers.RunOrder, "model_validate_json", lambda _: given)
    monkeypatch.setattr(workers, "_stop_with_parent", lambda: None)
    monkeypatch.setattr(workers, "run", lambda *_: fault())
    assert workers.main(tmp_path / "order.json") == code
    assert load_contract(RunFailure, given.out / FAILURE_FILE).out_of_memory is out_of_memory


def test_a_refusal_names_its_volume() -> None:
    with pytest.raises(DataError, match="does not fit into memory") as caught:
        in_a_volume()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_a_disk_without_room_for_the_folder_of_a_run_ends_the_benchmark_as_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    waiting = order(tmp_path / "a")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UnavailableError, match="No space left"):
        Pool(1, 0.01).run([waiting], lambda _: None)
