"""What a table's archive holds, and what it leaves behind."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from sssflow.bench.collect import best_model, collect
from sssflow.contracts.base import ObjectRef
from sssflow.contracts.bench import RunKey, RunResult
from sssflow.errors import DataError, UsageError
from sssflow.storage.contracts import save_contract

REF = ObjectRef(uri="train/model/model.json", size_bytes=0, sha256="0" * 64)


def add_run(folder: Path, seed: int, dice: float | None, weights: int) -> Path:
    key = RunKey(method="supervised", variant="default", labelled=2, seed=seed)
    run = folder / "runs" / key.name
    result = RunResult(
        key=key, order_digest="0" * 64, config_digest="0" * 64, dataset_digest="0" * 64, model=REF,
        model_digest="0" * 64, weights_bytes=weights, selection="-", best_step=1, steps_in_all=1,
        validation_dice_best=dice, roles=("test",), cases=REF, strict={}, ssl4mis={},
        wall_time_s={}, device="cpu",
    )  # fmt: skip
    save_contract(result, run / "result.json")
    (run / "train" / "model").mkdir(parents=True)
    (run / "train" / "checkpoints").mkdir()
    (run / "train" / "model" / "model.json").write_text("{}")
    (run / "train" / "model" / "weights.safetensors").write_bytes(b"w" * weights)
    (run / "train" / "checkpoints" / "state.pt").write_bytes(b"x" * 100)
    (run / "log.txt").write_text("early\n" + "late\n" * 400_000)
    return run


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    folder = tmp_path / "bench"
    add_run(folder, 1, 0.5, 1000)
    add_run(folder, 2, 0.9, 3_000_000)
    add_run(folder, 3, 0.7, 2000)
    add_run(folder, 4, None, 500)
    (folder / "table.md").write_text("# Table\n")
    (folder / "table.csv").write_text("a,b\n")
    (folder / "data").mkdir()
    (folder / "data" / "image.b2nd").write_bytes(b"scan")
    return folder


def test_the_best_validated_model_that_is_small_enough_goes_along(bench: Path) -> None:
    found = best_model(bench, 1.0)
    assert found == bench / "runs" / "supervised-default-l2-s3" / "train" / "model"
    big = best_model(bench, 10.0)
    assert big is not None
    assert big.parts[-3] == "supervised-default-l2-s2"
    assert best_model(bench, 1e-6) is None


def test_tables_results_logs_and_one_model_are_packed_and_scans_and_states_are_not(
    bench: Path, tmp_path: Path
) -> None:
    (bench / "bench.json").symlink_to("/etc/hostname")
    total = collect(bench, tmp_path / "out.tar", model_mb=1.0)
    with tarfile.open(tmp_path / "out.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
        log = tar.extractfile("runs/supervised-default-l2-s1/log.txt")
        assert log is not None
        text = log.read()
    assert {"table.md", "table.csv", "runs/supervised-default-l2-s4/result.json"} <= set(members)
    models = [name for name in members if name.endswith("weights.safetensors")]
    assert models == ["runs/supervised-default-l2-s3/train/model/weights.safetensors"]
    assert not [name for name in members if "data" in name or "checkpoints" in name]
    assert "bench.json" not in members, "a link is not followed"
    assert len(text) == 1_000_000
    assert b"early" not in text
    assert total == sum(member.size for member in members.values())
    first = (tmp_path / "out.tar").read_bytes()
    collect(bench, tmp_path / "again.tar", model_mb=1.0)
    assert (tmp_path / "again.tar").read_bytes() == first


def test_what_is_too_large_or_no_table_is_refused_and_nothing_is_written(
    bench: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="larger than it may be"):
        collect(bench, tmp_path / "out.tar", limit_mb=1.0)
    with pytest.raises(UsageError, match=r"\.tar"):
        collect(bench, tmp_path / "out.zip")
    (bench / "table.md").unlink()
    with pytest.raises(DataError, match="no table"):
        collect(bench, tmp_path / "out.tar")
    assert not list(tmp_path.glob("*.tar"))
