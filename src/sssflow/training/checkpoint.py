"""Checkpoints: a folder per step that is there complete or not at all.

`step_00000123/` holds `state.pt` (tensors and plain values; read with `weights_only=True`) and
`MANIFEST.json`, written last inside a temporary folder that is then renamed. There is no pointer
to the newest: readers scan, verify, and take the newest that is whole.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from pydantic import Field

from sssflow.contracts.base import Contract, ObjectRef, Sha256
from sssflow.errors import DataError, UsageError
from sssflow.storage.atomic import disk_errors, fsync_folder, write_atomically
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference, verified_path

_LOG = logging.getLogger(__name__)
_MANIFEST = "MANIFEST.json"
_STATE = "state.pt"
_TMP_MARK = ".sssflow-tmp"

State = dict[str, Any]


class CheckpointManifest(Contract):
    """What a checkpoint holds and which run it belongs to."""

    schema_name: ClassVar[str] = "sssflow.checkpoint"

    step: int = Field(ge=0)
    method: str
    config: dict[str, Any]
    inputs: dict[str, Sha256]
    state: ObjectRef


def save_checkpoint(
    folder: Path, state: State, manifest_of: CheckpointManifest, *, keep_last: int
) -> Path:
    """Publish `state` under `folder` and delete all but this and the `keep_last` - 1 before it.

    Checkpoints of later steps go too: the run went back before them, because they are damaged.

    Args:
        folder: The run's checkpoint folder.
        state: Tensors, numbers, strings, lists and dicts of these.
        manifest_of: The manifest; its `state` reference is replaced by the true one.
        keep_last: How many to keep, 1 or more.

    Raises:
        UnavailableError: The disk is full or read-only; the older checkpoints stay.
    """
    target = folder / f"step_{manifest_of.step:08d}"
    tmp = folder / f".{target.name}.{os.getpid()}{_TMP_MARK}"
    with disk_errors(target):
        try:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
            write_atomically(tmp / _STATE, lambda file: _write_state(state, file))
            manifest = manifest_of.model_copy(update={"state": reference(tmp / _STATE)})
            save_contract(manifest, tmp / _MANIFEST)
            # A checkpoint of the same step can only be a damaged one: the run went back before it.
            shutil.rmtree(target, ignore_errors=True)
            tmp.rename(target)
            fsync_folder(folder)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    found = list_checkpoints(folder)
    here = found.index(target) + 1
    for other in (*found[: max(0, here - keep_last)], *found[here:]):
        shutil.rmtree(other, ignore_errors=True)
    return target


def _write_state(state: State, file: BinaryIO) -> None:
    """`torch.save`, with the system's own words where it refuses.

    Raises:
        OSError: The disk is full or read-only.
    """
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # Torch ends its archive after a refused write too, and tells that this failed.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError):
                raise cause from None
            cause = cause.__context__
        raise


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first, whole or not."""
    return sorted(path for path in folder.glob("step_????????") if path.is_dir())


def load_newest(folder: Path) -> tuple[CheckpointManifest, State] | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning.

    None if there is no checkpoint at all.

    Raises:
        DataError: There are checkpoints, and every one of them is damaged.
    """
    found = list_checkpoints(folder)
    for path in reversed(found):
        try:
            return _load(path)
        except (DataError, OSError) as error:
            _LOG.warning("Checkpoint %s is damaged; trying the one before.\n%s", path.name, error)
    if found:
        raise DataError(
            "Every checkpoint of this run is damaged.",
            where=folder,
            found=", ".join(path.name for path in found),
            action="Delete the folder to start the run anew.",
        )
    return None


def _load(path: Path) -> tuple[CheckpointManifest, State]:
    manifest = load_contract(CheckpointManifest, path / _MANIFEST)
    file = verified_path(manifest.state, base=path)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Torch's refusals have types from a module that this house does not import, and their
        # words advise to load the file unsafely: those are not passed on.
        raise DataError(
            "The checkpoint cannot be read.",
            where=file,
            expected="tensors and plain values",
            found=type(error).__name__ if "weights_only" in str(error) else error,
        ) from None
    if not isinstance(state, dict):
        raise DataError("The checkpoint holds no state.", where=file, found=type(state).__name__)
    return manifest, state


def sweep_checkpoints(folder: Path) -> None:
    """Remove temporary folders of killed writers; the caller must hold the run's lock."""
    for path in folder.glob(f".step_*{_TMP_MARK}"):
        shutil.rmtree(path, ignore_errors=True)


def require_same_run(
    found: CheckpointManifest, *, config: dict[str, Any], inputs: dict[str, Sha256], where: Path
) -> None:
    """Refuse to resume with other settings or data, naming every key that differs.

    Raises:
        UsageError: The configuration or an input differs.
    """
    differing = different_keys(found.config, config) + [
        f"input {line}" for line in different_keys(found.inputs, inputs)
    ]
    if differing:
        raise UsageError(
            "The output folder holds a run with other settings or data.",
            where=where,
            expected="the same settings and inputs as the run that is resumed",
            found="; ".join(differing),
            action="Choose another output folder, or start anew with --no-resume.",
        )


def different_keys(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: before -> now` for every setting that differs, dotted for nested ones."""
    lines = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += different_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines
