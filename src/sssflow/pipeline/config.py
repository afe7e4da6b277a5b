"""Settings of the pipeline itself: how wide it fans out and what else it prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sssflow.configuration import Config
from sssflow.contracts.dataset import Role

MeasuredRole = Literal[Role.VALIDATION, Role.TEST]


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
