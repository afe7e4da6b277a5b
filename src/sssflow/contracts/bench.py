"""What a benchmark leaves: one result or one failure per run, and the record of the whole."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from sssflow.contracts.base import Contract, ObjectRef, Record, Sha256
from sssflow.contracts.evaluation import Figure, MaskQuality


class RunKey(Record):
    """Which run of a benchmark: what differs from row to row, and nothing else."""

    method: str
    variant: str
    labelled: int | float = Field(description="Patients, or a share of them.")
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.method}-{self.variant}-l{self.labelled:g}-s{self.seed}"


class RunResult(Contract):
    """One trained and measured model. Files lie below the folder of this file."""

    schema_name: ClassVar[str] = "sssflow.bench-run"

    key: RunKey
    order_digest: Sha256 = Field(description="Digest of the settings and data that were asked for.")
    config_digest: Sha256
    dataset_digest: Sha256
    model: ObjectRef
    model_digest: Sha256
    weights_bytes: int = Field(ge=0)
    selection: str = Field(description="Which split and metric chose the step.")
    best_step: int
    steps_in_all: int = Field(description="Of all its trainings and of the warm-up before them.")
    steps_of_training: int | None = Field(
        None, description="Of the training that `best_step` counts in; None: an older result."
    )
    steps_of_warmup: int | None = Field(None, description="Before it; None: an older result.")
    validation_dice_best: float | None = None
    validation_dice_last: float | None = None
    roles: tuple[str, ...] = Field(description="Roles of the measured cases.")
    cases: ObjectRef = Field(description="Scores per case and class.")
    strict: dict[str, Figure]
    ssl4mis: dict[str, Figure]
    sam2: tuple[MaskQuality, ...] = ()
    wall_time_s: dict[str, float] = Field(description="Stage to seconds; shared stages in full.")
    device: str
    peak_gpu_gib: float | None = None
    notes: tuple[str, ...] = ()


class RunFailure(Contract):
    """Why a run has no result."""

    schema_name: ClassVar[str] = "sssflow.bench-failure"

    key: RunKey
    order_digest: Sha256
    kind: str
    exit_code: int
    message: str
    out_of_memory: bool = False

    @property
    def first_line(self) -> str:
        """The sentence for a table."""
        return self.message.splitlines()[0] if self.message else self.kind


class BenchRecord(Contract):
    """One benchmark: what was asked for, which runs are there, which failed."""

    schema_name: ClassVar[str] = "sssflow.bench"

    protocol: str
    protocol_digest: Sha256
    config: dict[str, Any]
    dataset_digests: dict[str, Sha256] = Field(description="Labelled count (and seed) to digest.")
    versions: dict[str, str]
    results: dict[str, ObjectRef] = Field(description="Run name to its result.json.")
    failures: dict[str, str] = Field({}, description="Run name to the reason.")
    missing: tuple[str, ...] = Field((), description="Runs that were not reached.")
    files: dict[str, ObjectRef] = Field({}, description="Tables.")
