"""Bring a model repository to a server's folder, every file verified: the chart's init container.

Triton then reads files of this folder that nobody else writes, never the store itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sssflow.contracts.base import Sha256
from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository, ServedModel
from sssflow.errors import DataError
from sssflow.serving.versions import drop_other_versions
from sssflow.storage.atomic import disk_errors
from sssflow.storage.contracts import save_contract
from sssflow.storage.digest import sha256_file
from sssflow.storage.places import Place, open_place
from sssflow.storage.uri import below

_LOG = logging.getLogger(__name__)


def run(
    source: str, target: Path, *, models: Sequence[str] = (), digest: Sha256 | None = None
) -> ModelRepository:
    """Copy the models of a repository, and its `repository.json` last.

    A file of `target` that holds the right bytes already stays, so that a killed copy goes on.

    Args:
        source: Folder of the repository: a path, `file://` or `s3://`.
        target: Folder of the server; other versions of these models are removed, other files in
            it are left alone.
        models: Which models; empty: all of them.
        digest: Of the repository that is wanted; None: whichever lies there.

    Returns:
        What `target` now holds: the repository with these models only.

    Raises:
        DataError: No repository there, another one than wanted, a model that it lacks, or a file
            whose size or SHA-256 is not the manifest's.
        UnavailableError: The store or the disk cannot be used now.
    """
    place = open_place(source)
    repository = _read(place, digest)
    chosen = _choose(repository, models, place)
    for number, model in enumerate(chosen, start=1):
        for ref in model.files:
            path = below(ref.uri, base=target)
            if not (path.is_file() and sha256_file(path) == ref.sha256):
                place.get_file(ref, path)
        with disk_errors(target):
            drop_other_versions(target / model.name, model.version)
        _LOG.info("model %d of %d: %s", number, len(chosen), model.name)
    copied = repository.model_copy(update={"models": chosen})
    save_contract(copied, target / REPOSITORY_FILE)
    return copied


def _read(place: Place, digest: Sha256 | None) -> ModelRepository:
    where = f"{place.uri}/{REPOSITORY_FILE}"
    data = place.get_bytes(REPOSITORY_FILE)
    if data is None:
        raise DataError(
            "There is no model repository here.",
            where=where,
            action="Check the address; `sssflow serve repository` writes this file last.",
        )
    repository = ModelRepository.from_json(data, where=where)
    if digest is not None and repository.digest != digest:
        raise DataError(
            "Another model repository lies here.",
            where=where,
            expected=f"digest {digest}",
            found=repository.digest,
            action="Name the digest of the repository that is to be served.",
        )
    return repository


def _choose(
    repository: ModelRepository, names: Sequence[str], place: Place
) -> tuple[ServedModel, ...]:
    present = [model.name for model in repository.models]
    absent = [name for name in names if name not in present]
    if absent:
        raise DataError(
            "The model repository lacks models that are to be served.",
            where=place.uri,
            expected=", ".join(absent),
            found=", ".join(present),
            action="Name models that it holds, or write it again with what is missing.",
        )
    return tuple(m for m in repository.models if not names or m.name in names)
