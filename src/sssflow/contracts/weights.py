"""PromptableWeights: weights of a promptable model that were adapted to a dataset."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sssflow.contracts.base import Contract, ObjectRef, Sha256


class PromptableWeights(Contract):
    """Adapted weights. `weights` is a safetensors file beside this file."""

    schema_name: ClassVar[str] = "sssflow.sam2"

    weights: ObjectRef
    start_sha256: Sha256 = Field(description="Of the weights that the adaptation started from.")
    dataset_digest: Sha256 = Field(description="Of the dataset whose labelled cases were shown.")
    config_digest: Sha256
    steps: int = Field(ge=1)
