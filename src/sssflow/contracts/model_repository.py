"""ModelRepository: a Triton model repository, its models, and the digest of every file."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import Field

from sssflow.contracts.base import Contract, ObjectRef, Record, Sha256
from sssflow.contracts.bundle import TensorContract

REPOSITORY_FILE: Final = "repository.json"

Profile = Literal["cpu", "cpu-onnxruntime", "gpu", "gpu-tensorrt"]


class ServedModel(Record):
    """One model of the repository."""

    name: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    version: int = Field(ge=1)
    digest: Sha256 = Field(description="Names the weights that it serves.")
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    files: tuple[ObjectRef, ...] = Field(min_length=1)


class ModelRepository(Contract):
    """All files lie beside this file; written last, so that a repository with it is complete.

    `models` stand in the order in which they must be loaded: a model after those that it calls.
    """

    schema_name: ClassVar[str] = "sssflow.model_repository"

    profile: Profile
    models: tuple[ServedModel, ...] = Field(min_length=1)

    def model(self, name: str) -> ServedModel:
        """One model; KeyError if there is none of that name."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)
