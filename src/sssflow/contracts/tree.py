"""FileTree: what a published folder holds; written last, so that a folder without it is none."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from sssflow.contracts.base import Contract, ObjectRef


class FileTree(Contract):
    """Every file of a folder by relative path, size and digest, in the order of the paths."""

    schema_name: ClassVar[str] = "sssflow.file-tree"

    files: tuple[ObjectRef, ...]

    @model_validator(mode="after")
    def _names_are_in_order(self) -> Self:
        names = [ref.uri for ref in self.files]
        if names != sorted(set(names)):
            raise ValueError("files must be sorted by uri and named once")
        return self
