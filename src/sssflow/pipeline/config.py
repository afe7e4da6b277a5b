"""Settings of the pipeline itself: how wide it fans out and what else it prompts."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal, Self

from pydantic import Field, model_validator

from sssflow.configuration import Config
from sssflow.contracts.dataset import Role

MeasuredRole = Literal[Role.VALIDATION, Role.TEST]


class Toleration(Config):
    """A taint that the machines may have."""

    key: str = Field(min_length=1, description="Of the taint.")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="As Kubernetes means it.")
    value: str = Field("", description="For Equal.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        "", description="Empty: every effect."
    )


class NodesConfig(Config):
    """Several machines for one training."""

    nodes: int = Field(ge=2, le=64, description="Machines.")
    image: str = Field(min_length=1, description="Of every machine, by digest.")
    claim: str = Field(min_length=1, description="ReadWriteMany claim that all of them mount.")
    claim_path: str = Field(
        "/mnt/sssflow", pattern=r"^/[\w./-]*\w$", description="Where they and this task mount it."
    )
    kind: Literal["auto", "trainjob", "job"] = Field(
        "auto",
        description="trainjob: Kubeflow Trainer 2.2 or newer; job: an Indexed Job with a headless "
        "Service; auto: a TrainJob where the cluster knows it.",
    )
    runtime: str = Field("torch-distributed", description="ClusterTrainingRuntime of a TrainJob.")
    gpu_type: str = Field("nvidia.com/gpu", description="GPU resource; empty: CPUs only.")
    cpu: str = Field("2", description="CPUs that each machine asks for.")
    memory: str = Field("16Gi", description="Memory of each machine.")
    shared_memory: str = Field("2Gi", description="Of /dev/shm; part of the memory.")
    service_account: str = Field("default", description="Of the pods; it needs no rights.")
    pull_secret: str = Field(
        "", description="Secret for pulling the image; empty: those of the service account."
    )
    node_selector: dict[str, str] = Field({}, description="Labels of the machines.")
    tolerations: tuple[Toleration, ...] = Field((), description="Taints of the machines.")
    queue: str = Field("", description="Kueue queue; empty: none.")
    deadline_s: int = Field(604800, ge=60, description="The cluster ends the machines after it.")
    attempts: int = Field(3, ge=1, le=50, description="Starts, if machines are lost.")
    port: int = Field(29500, ge=1024, le=65535, description="Where the processes meet.")

    @model_validator(mode="after")
    def _is_not_the_root(self) -> Self:
        if ".." in PurePosixPath(self.claim_path).parts:
            raise ValueError("claim_path must not climb")
        return self


class PipelineConfig(Config):
    """Shape of one pipeline run."""

    shards: int = Field(
        2,
        ge=1,
        le=50,
        description="Parts that the unlabelled cases are cut into; each costs two tasks.",
    )
    rounds: Literal[1] = Field(1, description="Times that prompts and masks are made.")
    scored_roles: tuple[MeasuredRole, ...] = Field(
        (Role.VALIDATION,),
        description="Roles prompted beside the unlabelled one, in one more shard each, so that "
        "the report can compare SAM-2 with the coarse masks; empty: none.",
    )
    nodes: NodesConfig | None = Field(
        None,
        description="Machines for trainings with several `processes`; without it one task's pod.",
    )
