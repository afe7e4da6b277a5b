"""Are the files that a contract names still those that its stage wrote?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from sssflow.contracts.base import Contract, ObjectRef
from sssflow.contracts.model import TrainedModel
from sssflow.contracts.run import RunRecord
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import verified_path


def require_whole(contract: Contract, folder: Path) -> None:
    """Check every file of a result by size and SHA-256, the weights of its model too.

    A training's checkpoints are not looked at: its model stands without them.

    Args:
        contract: The result.
        folder: Where it lies; files with an address of their own are not looked at.

    Raises:
        DataError: A file is missing or damaged.
    """
    if isinstance(contract, RunRecord):
        path = verified_path(contract.model, base=folder)
        require_whole(load_contract(TrainedModel, path), path.parent)
        return
    for ref in _references(contract):
        if "://" not in ref.uri:
            verified_path(ref, base=folder)


def _references(value: object) -> Iterator[ObjectRef]:
    """All references to files inside a contract, however deep."""
    if isinstance(value, ObjectRef):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _references(getattr(value, name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _references(part)
