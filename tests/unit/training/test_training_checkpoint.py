"""Checkpoints: whole or absent, newest whole one wins, other runs refused by key."""

from __future__ import annotations

import errno
import io
import logging
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import pytest
import torch

from sssflow.contracts.base import ObjectRef
from sssflow.errors import DataError, UnavailableError, UsageError
from sssflow.training import checkpoint, distributed
from sssflow.training.checkpoint import (
    CheckpointManifest,
    different_keys,
    list_checkpoints,
    load_newest,
    require_same_run,
    save_checkpoint,
    sweep_checkpoints,
)

NOTHING = ObjectRef(uri="-", size_bytes=0, sha256="0" * 64)


def manifest(step: int, **config: object) -> CheckpointManifest:
    return CheckpointManifest(
        step=step,
        method="supervised",
        config={"seed": 1, "network": {"levels": 3}, **config},
        inputs={"dataset": "a" * 64},
        state=NOTHING,
    )


def save(folder, *steps, keep_last=10):
    for step in steps:
        save_checkpoint(
            folder, {"value": torch.full((3,), float(step))}, manifest(step), keep_last=keep_last
        )


def newest_value(folder) -> float:
    found = load_newest(folder)
    assert found is not None
    return float(found[1]["value"][0])


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Inside, the system refuses this process larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room_bytes", [0, 100, 30_000, 200_000, 399_000])
def test_a_disk_that_is_full_at_any_byte_ends_as_unavailable_and_keeps_the_checkpoint_before(
    tmp_path, room_bytes
):
    save(tmp_path, 1)
    state = {f"value{i}": torch.full((10_000,), 1.0) for i in range(10)}
    with files_of_at_most(room_bytes), pytest.raises(UnavailableError, match="cannot be written"):
        save_checkpoint(tmp_path, state, manifest(2), keep_last=1)
    assert newest_value(tmp_path) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    save(tmp_path, 3)
    assert newest_value(tmp_path) == 3.0


def test_what_is_saved_is_loaded_and_the_newest_wins(tmp_path):
    save(tmp_path, 5, 7, 40)
    found, state = load_newest(tmp_path)
    assert found.step == 40
    assert state["value"].tolist() == [40.0] * 3
    assert load_newest(tmp_path / "nothing") is None


def test_only_the_last_ones_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000003", "step_00000004"]


def truncate(path):
    data = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(data[: len(data) // 2])


def flip_a_byte(path):
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 255
    (path / "state.pt").write_bytes(bytes(data))


def drop_the_manifest(path):
    (path / "MANIFEST.json").unlink()


def empty_the_manifest(path):
    (path / "MANIFEST.json").write_text("")


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, drop_the_manifest, empty_the_manifest])
def test_a_damaged_newest_gives_the_one_before_with_a_warning(damage, tmp_path, caplog):
    save(tmp_path, 1, 2)
    damage(list_checkpoints(tmp_path)[-1])
    with caplog.at_level(logging.WARNING):
        assert newest_value(tmp_path) == 1.0
    assert "step_00000002 is damaged" in caplog.text


def test_when_all_are_damaged_nothing_is_trained_over_them(tmp_path):
    save(tmp_path, 1, 2)
    for path in list_checkpoints(tmp_path):
        truncate(path)
    with pytest.raises(DataError, match="Every checkpoint"):
        load_newest(tmp_path)


def test_a_state_that_is_not_plain_is_refused(tmp_path, caplog):
    from sssflow.storage.contracts import save_contract
    from sssflow.storage.digest import reference

    save(tmp_path, 1)
    path = list_checkpoints(tmp_path)[0]
    torch.save({"value": PurePosixPath("/foreign")}, path / "state.pt")
    changed = manifest(1).model_copy(update={"state": reference(path / "state.pt")})
    save_contract(changed, path / "MANIFEST.json")
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="Every checkpoint"):
        load_newest(tmp_path)
    assert "found: UnpicklingError" in caplog.text
    assert "weights_only" not in caplog.text, "torch's advice to load it unsafely is not passed on"


def test_a_state_of_another_process_that_is_not_plain_is_refused_without_torchs_advice():
    data = io.BytesIO()
    torch.save({"value": PurePosixPath("/foreign")}, data)
    packed = torch.frombuffer(bytearray(data.getvalue()), dtype=torch.uint8)
    with pytest.raises(DataError, match="another process") as caught:
        distributed._unpacked(packed)
    assert "weights_only" not in str(caught.value)


def test_leftovers_of_a_killed_writer_go_and_are_never_read(tmp_path):
    save(tmp_path, 1)
    leftover = tmp_path / ".step_00000009.4242.sssflow-tmp"
    shutil.copytree(list_checkpoints(tmp_path)[0], leftover)
    assert newest_value(tmp_path) == 1.0
    sweep_checkpoints(tmp_path)
    assert not leftover.exists()
    assert newest_value(tmp_path) == 1.0


def test_a_checkpoint_over_a_damaged_one_of_the_same_step_replaces_it(tmp_path):
    save(tmp_path, 1, 2)
    truncate(list_checkpoints(tmp_path)[-1])
    save(tmp_path, 2)
    assert newest_value(tmp_path) == 2.0


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_run_that_went_back_keeps_what_it_writes_and_not_the_damaged_one_ahead(
    keep_last, tmp_path
):
    save(tmp_path, 200, 300)
    truncate(list_checkpoints(tmp_path)[-1])
    assert newest_value(tmp_path) == 200.0
    save(tmp_path, 250, keep_last=keep_last)
    assert newest_value(tmp_path) == 250.0
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step_00000200",
        "step_00000250",
    ][-keep_last:]


def test_a_checkpoint_that_the_disk_refuses_to_read_gives_the_one_before(
    tmp_path, monkeypatch, caplog
):
    save(tmp_path, 1, 2)
    read = checkpoint.verified_path

    def refuse(ref, *, base):
        if base.name == "step_00000002":
            raise OSError(errno.EIO, "Input/output error")
        return read(ref, base=base)

    monkeypatch.setattr(checkpoint, "verified_path", refuse)
    with caplog.at_level(logging.WARNING):
        assert newest_value(tmp_path) == 1.0
    assert "Input/output error" in caplog.text


def test_another_configuration_or_dataset_is_refused_by_every_differing_key(tmp_path):
    now = {"seed": 2, "network": {"levels": 4}}
    with pytest.raises(UsageError) as caught:
        require_same_run(manifest(1), config=now, inputs={"dataset": "b" * 64}, where=tmp_path)
    text = str(caught.value)
    assert "seed: 1 -> 2" in text
    assert "network.levels: 3 -> 4" in text
    assert "input dataset" in text


def test_equal_settings_have_no_different_keys():
    settings = {"a": 1, "b": {"c": [1, 2]}}
    assert different_keys(settings, dict(settings)) == []
    assert different_keys({"a": 1}, {}) == ["a: 1 -> None"]
