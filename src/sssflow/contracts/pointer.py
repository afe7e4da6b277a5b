"""Pointer: where a contract is and what it must hold; the only thing that pipelines pass on."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sssflow.contracts.base import SHA256_PATTERN, Contract, Sha256


class Pointer(Contract):
    """URI of a contract file and the digest (`Contract.digest`) that its reader must find."""

    schema_name: ClassVar[str] = "sssflow.pointer"

    uri: str
    content_digest: Sha256 = Field(pattern=SHA256_PATTERN)
