"""Bring a new version of a served model live, or bring the former one back.

The order for each model: files beside the repository, verified; the version folder appears by one
rename; `config.pbtxt` is replaced; the server loads it. When all are loaded, each is asked once. If
anything fails, all models go back together: the former `config.pbtxt` returns, the new version
folder goes, and the server loads the former version. A journal in the repository lets the next
call take back what a killed one left.

The live repository must be a folder that the server sees (a volume, a mount).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from sssflow.contracts.base import Contract, ObjectRef, Record
from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository, ServedModel
from sssflow.errors import DataError, InternalError, SssflowError, UnavailableError
from sssflow.serving import sync
from sssflow.serving.bench import sample_inputs
from sssflow.serving.client import TritonClient
from sssflow.serving.versions import versions
from sssflow.storage.atomic import disk_errors, fsync_folder, write_bytes, write_text
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import verified_path
from sssflow.storage.lock import locked
from sssflow.storage.uri import to_path

_LOG = logging.getLogger(__name__)
_JOURNAL = "publish.json"
_LOCK = ".publish.lock"
_CONFIG = "config.pbtxt"


class _Change(Record):
    """One model before and after."""

    model: str
    version: int
    former_version: int | None
    former_config: str | None


class _Publication(Contract):
    """What is under way; stands in the repository until all of it is live."""

    schema_name: ClassVar[str] = "sssflow.publication"

    changes: tuple[_Change, ...]


@dataclass(frozen=True)
class Published:
    """What is live now."""

    model: str
    version: int
    former_version: int | None


def run(source: str, target: str, client: TritonClient) -> tuple[Published, ...]:
    """Publish every model of `source` whose files differ from those that are live.

    Models that call others come last, so that none is asked before its parts are new.

    Args:
        source: Path, `file://` or `s3://` of a folder with `repository.json`.
        target: Path or `file://` of the repository that the server reads.
        client: Of the server, which runs in explicit model control.

    Raises:
        DataError: A file of the source is missing or changed, or a model does not load; the
            former version is live.
        InternalError: A model loads and cannot be asked; the former version is live.
        UnavailableError: No server; what was changed is taken back as far as the disk allows. Or
            another publication into this repository is under way.
    """
    live = to_path(target)
    busy = UnavailableError(
        "Another publication into this repository is under way.",
        where=live,
        action="Run the same command again when it has ended.",
    )
    with locked(live / _LOCK, refusal=busy):
        return _publish(source, live, client)


def _publish(source: str, live: Path, client: TritonClient) -> tuple[Published, ...]:
    from_folder = _brought(source, live)
    described = load_contract(ModelRepository, from_folder / REPOSITORY_FILE)
    for model in described.models:
        for ref in model.files:
            verified_path(ref, base=from_folder)
    recover(live, client)
    new = [model for model in described.models if not _is_live(model, live)]
    # All of them before the first: what is taken back must hold the models too that call a changed
    # one and were not reached, for they keep what it gave them.
    publication = _Publication(changes=tuple(_plan(model, live) for model in new))
    try:
        for model, change in zip(new, publication.changes, strict=True):
            _upload(publication, model, change, from_folder, live)
            client.load(model.name)
        for model in described.models:
            _smoke(client, model)
    except BaseException:
        _LOG.warning("the publication failed; taking back %d model(s)", len(new))
        _take_back(publication.changes, live, client)
        raise
    _describe(described, live)
    (live / _JOURNAL).unlink(missing_ok=True)
    return tuple(Published(c.model, c.version, c.former_version) for c in publication.changes)


def recover(live: Path, client: TritonClient) -> bool:
    """Take back what a killed publication left half done; says whether there was anything.

    One that had come as far as its description is whole: nothing is taken back.

    Raises:
        UnavailableError: The server cannot load the former version now.
    """
    if not (live / _JOURNAL).is_file():
        return False
    changes = load_contract(_Publication, live / _JOURNAL).changes
    if _is_described(changes, live):
        (live / _JOURNAL).unlink()
        return False
    _LOG.warning("a publication was interrupted; taking back %d model(s)", len(changes))
    _take_back(changes, live, client)
    return True


def _brought(source: str, live: Path) -> Path:
    """The source as a folder here; one in a store is fetched beside the live repository first."""
    if "://" not in source or source.startswith("file://"):
        return to_path(source)
    folder = live.with_name(f"{live.name}.incoming")
    sync.run(source, folder)
    return folder


def _plan(model: ServedModel, live: Path) -> _Change:
    folder = live / model.name
    there, config = versions(folder), folder / _CONFIG
    return _Change(
        model=model.name,
        version=max(there, default=0) + 1,
        former_version=max(there, default=None),
        former_config=config.read_text("utf-8") if config.is_file() else None,
    )


def _upload(
    publication: _Publication, model: ServedModel, change: _Change, source: Path, live: Path
) -> None:
    """The version folder by one rename, then the config; the journal stands before both."""
    folder = live / model.name
    with disk_errors(folder):
        staged = folder / f".{change.version}.sssflow-tmp"
        shutil.rmtree(staged, ignore_errors=True)
        prefix = f"{model.name}/{model.version}/"
        for ref in model.files:
            if ref.uri.startswith(prefix):
                _copy(ref, source, staged / ref.uri.removeprefix(prefix))
        save_contract(publication, live / _JOURNAL)
        staged.rename(folder / str(change.version))
        fsync_folder(folder)
        write_bytes(folder / _CONFIG, (source / model.name / _CONFIG).read_bytes())


def _copy(ref: ObjectRef, source: Path, target: Path) -> None:
    """Copy a verified file, and verify the copy."""
    write_bytes(target, verified_path(ref, base=source).read_bytes())
    verified_path(ref.model_copy(update={"uri": target.name}), base=target.parent)


def _take_back(changes: Sequence[_Change], live: Path, client: TritonClient) -> None:
    """Files of all models first, then the server: parts before the models that call them."""
    for change in changes:
        folder = live / change.model
        with disk_errors(folder):
            shutil.rmtree(folder / str(change.version), ignore_errors=True)
            shutil.rmtree(folder / f".{change.version}.sssflow-tmp", ignore_errors=True)
            if change.former_config is not None:
                write_text(folder / _CONFIG, change.former_config)
    for change in changes:
        if change.former_version is not None:
            client.load(change.model)
        elif (live / change.model).is_dir():
            client.unload(change.model)
            shutil.rmtree(live / change.model, ignore_errors=True)
    (live / _JOURNAL).unlink(missing_ok=True)


def _smoke(client: TritonClient, model: ServedModel) -> None:
    """One inference whose outputs are there and finite.

    Raises:
        InternalError: They are not.
    """
    names = [tensor.name for tensor in model.outputs]
    try:
        answers = client.infer(model.name, sample_inputs(model), names)
    except SssflowError as error:
        raise InternalError(
            "A published model cannot be asked; the former version is live again.",
            where=model.name,
            found=error.found or error.what,
        ) from None
    bad = [name for name in names if not np.isfinite(answers[name]).all()]
    if bad:
        raise InternalError(
            "A published model gives values that are not finite; the former version is live again.",
            where=model.name,
            found=", ".join(bad),
        )


def _is_live(model: ServedModel, live: Path) -> bool:
    """Whether the newest live version has the same files."""
    newest = max(versions(live / model.name), default=None)
    if newest is None:
        return False
    for ref in model.files:
        uri = ref.uri.replace(f"{model.name}/{model.version}/", f"{model.name}/{newest}/", 1)
        try:
            verified_path(ref.model_copy(update={"uri": uri}), base=live)
        except DataError:
            return False
    return True


def _is_described(changes: Sequence[_Change], live: Path) -> bool:
    """Whether `repository.json`, which is written last, names all of these versions."""
    if not (live / REPOSITORY_FILE).is_file():
        return False
    described = load_contract(ModelRepository, live / REPOSITORY_FILE)
    named = {(model.name, model.version) for model in described.models}
    return named.issuperset((change.model, change.version) for change in changes)


def _describe(described: ModelRepository, live: Path) -> None:
    """Write `repository.json` of what is live: the published models and those there before."""
    models = []
    for model in described.models:
        newest = max(versions(live / model.name))
        old, new = f"{model.name}/{model.version}/", f"{model.name}/{newest}/"
        files = tuple(
            ref.model_copy(update={"uri": ref.uri.replace(old, new, 1)}) for ref in model.files
        )
        models.append(model.model_copy(update={"version": newest, "files": files}))
    named = {model.name for model in models}
    if (live / REPOSITORY_FILE).is_file():
        before = load_contract(ModelRepository, live / REPOSITORY_FILE)
        models = [*(m for m in before.models if m.name not in named), *models]
    save_contract(described.model_copy(update={"models": tuple(models)}), live / REPOSITORY_FILE)
