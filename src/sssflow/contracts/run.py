"""RunRecord: what was run, on what, with what result; enough to run it again."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from sssflow.contracts.base import Contract, ObjectRef, Sha256


class RunRecord(Contract):
    """One training run. `wall_time_s` and `device` are facts of the machine, not of the result."""

    schema_name: ClassVar[str] = "sssflow.run"

    method: str
    config: dict[str, Any]
    config_digest: Sha256
    seed: int
    versions: dict[str, str]
    inputs: dict[str, Sha256] = Field(description="Name of each input to its digest.")
    steps: int
    best_step: int = Field(description="Step whose weights were kept, chosen on validation.")
    selection: str = Field(description="Which split and metric chose `best_step`.")
    metrics: dict[str, float]
    history: tuple[dict[str, float], ...] = Field(
        (), description="One entry per validation: step and metrics."
    )
    checkpoints: tuple[ObjectRef, ...] = ()
    model: ObjectRef
    wall_time_s: float
    device: str
    notes: tuple[str, ...] = ()
