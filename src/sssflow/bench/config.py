"""What to run: methods by variants by label counts by seeds, and how many at a time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sssflow.bench.protocol import Labelled
from sssflow.bench.variants import DEFAULT
from sssflow.configuration import Config

SUPERVISED = "supervised"


class BenchConfig(Config):
    """One benchmark of a protocol."""

    labelled: tuple[Labelled, ...] = Field(
        (), description="Label counts; empty: all of the protocol."
    )
    methods: tuple[str, ...] = Field((SUPERVISED,), min_length=1, description="Method names.")
    variants: tuple[str, ...] = Field(
        (DEFAULT,), min_length=1, description="Variants of every method; a+b joins two."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (1, 2, 3), min_length=1, description="One run each."
    )
    baseline: bool = Field(
        True, description="Add supervised runs with the same net and augmentation where missing."
    )
    settings: tuple[str, ...] = Field(
        (), description="key=value over protocol and variant, for every run."
    )
    parallel: int = Field(
        1, ge=1, le=64, description="Runs at a time; on a GPU only while its memory allows."
    )
    threads: int = Field(
        0, ge=0, le=256, description="CPU threads of each run; 0: the cores divided by `parallel`."
    )
    poll_s: float = Field(0.5, gt=0, le=60, description="Seconds between two looks at the runs.")
