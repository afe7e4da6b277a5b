"""The base of every contract: frozen, strict, JSON with a schema version, digest of the content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sssflow.errors import DataError

Sha256 = str
"""64 lower-case hexadecimal digits."""

SHA256_PATTERN = r"^[0-9a-f]{64}$"


class Record(BaseModel):
    """A part of a contract: frozen, unknown keys refused, NaN and infinity refused in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ObjectRef(Record):
    """One stored file, named by where it is and by what it holds.

    `uri` is absolute (`file://…`, `s3://…`) or relative to the folder of the contract that names
    it; a relative one may not leave that folder.
    """

    uri: str = Field(min_length=1, max_length=1024)
    size_bytes: int = Field(ge=0)
    sha256: Sha256 = Field(pattern=SHA256_PATTERN)


class Contract(Record):
    """A file that stages meet in.

    Subclasses set `schema_name` and `schema_version`; both are written into the JSON and must
    match when it is read, so that a file of another kind or age is refused, not misread.
    """

    schema_name: ClassVar[str]
    schema_version: ClassVar[int] = 1

    def to_json(self) -> str:
        """Canonical JSON (sorted keys, final newline): equal content gives equal bytes."""
        return json.dumps(self._tagged(), sort_keys=True, indent=2, allow_nan=False) + "\n"

    @property
    def digest(self) -> Sha256:
        """SHA-256 of the canonical JSON without white space."""
        text = json.dumps(self._tagged(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str | bytes, *, where: object = "") -> Self:
        """Read what `to_json` wrote.

        Raises:
            DataError: Not JSON, another schema name or version, or a field that does not fit.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"Not a readable {cls.schema_name}.",
                where=where,
                expected="JSON",
                found=error,
                action="Point to the right file, or make it again with the stage that writes it.",
            ) from None
        cls._check_tag(data, where)
        body = {k: v for k, v in data.items() if k not in ("schema", "schema_version")}
        try:
            return cls.model_validate_json(json.dumps(body))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise DataError(
                f"The {cls.schema_name} does not hold to its schema.",
                where=f"{where} {'.'.join(map(str, first['loc']))}".strip(),
                expected=first["msg"],
                found=f"{first.get('input')!r:.120}",
                action="Make the file again with the stage that writes it.",
            ) from None

    def _tagged(self) -> dict[str, Any]:
        return {
            "schema": self.schema_name,
            "schema_version": self.schema_version,
            **self.model_dump(mode="json"),
        }

    @classmethod
    def _check_tag(cls, data: object, where: object) -> None:
        expected = f"{cls.schema_name} version {cls.schema_version}"
        if not isinstance(data, dict):
            found = type(data).__name__
        else:
            found = f"{data.get('schema')} version {data.get('schema_version')}"
        if found != expected:
            raise DataError(
                "The file is of another kind or schema version.",
                where=where,
                expected=expected,
                found=found,
                action="Point to the right file, or make it again with this version of sssflow.",
            )


def require_known_classes(
    class_names: Sequence[str], classes_of_cases: Sequence[tuple[str, Sequence[int]]]
) -> None:
    """Hold the objects of a set's cases to its classes, the background at 0 among the names.

    Raises:
        ValueError: A case stands twice, a class of a case stands twice or has no name.
    """
    seen: set[str] = set()
    for case_id, classes in classes_of_cases:
        if case_id in seen:
            raise ValueError(f"case {case_id} stands twice")
        seen.add(case_id)
        if len(set(classes)) != len(classes):
            raise ValueError(f"{case_id}: a class stands twice")
        if max(classes, default=0) >= len(class_names):
            raise ValueError(f"{case_id}: class {max(classes)} of {len(class_names) - 1}")
