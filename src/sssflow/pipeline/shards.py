"""Shards: the parts of a dataset that fan out, and which masks belong to which use.

Fan-out is over shards, never over cases: every task of a cluster costs seconds of its own. A shard
does not list its cases but works them out from the manifest, so that what travels through the
pipeline stays small however many cases there are.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import Field

from sssflow.contracts.base import Contract
from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.contracts.masks import MaskSet
from sssflow.contracts.prompts import PromptSet
from sssflow.errors import DataError
from sssflow.pipeline.config import PipelineConfig

S = TypeVar("S", MaskSet, PromptSet)


class Shard(Contract):
    """One part of the cases of one role that one task works on, and what it works with.

    It carries the pointers to dataset and run itself, because kfp 2.17's local runner gives the
    loop item to a looped task in place of any output of a task outside the loop.
    """

    schema_name: ClassVar[str] = "sssflow.shard"

    dataset: str = Field(description="Pointer to the DatasetManifest.")
    run: str = Field(description="Pointer to the RunRecord whose model makes the coarse masks.")

    sam2: str = Field("", description="Pointer to adapted PromptableWeights; empty: none.")

    role: Role
    number: int = Field(ge=1)
    count: int = Field(ge=1, description="Shards of this role.")

    @property
    def label(self) -> str:
        """Name for progress lines, for example `unlabelled 1/2`."""
        return f"{self.role.value} {self.number}/{self.count}"

    def case_ids(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """The shard's cases, sorted: of almost equal voxel count in all shards of the role.

        They depend on the manifest, the role, the number and the count alone.

        Raises:
            DataError: The manifest has fewer cases of this role than shards.
        """
        cases = manifest.with_role(self.role)
        if not self.number <= self.count <= len(cases):
            raise DataError(
                "The shard does not fit the dataset.",
                where=self.label,
                expected=f"number up to count, count up to {len(cases)} case(s)",
                found=f"number {self.number}, count {self.count}",
                action="Run the pipeline again from its start.",
            )
        parts: list[list[str]] = [[] for _ in range(self.count)]
        loads = [(0, part) for part in range(self.count)]  # a heap: the lightest part first
        # Largest case first onto the lightest part; ties go by id and by part number.
        for case in sorted(cases, key=lambda c: (-_voxels(c.grid.shape_shw), c.case_id)):
            load, lightest = loads[0]
            parts[lightest].append(case.case_id)
            heapq.heapreplace(loads, (load + _voxels(case.grid.shape_shw), lightest))
        return tuple(sorted(parts[self.number - 1]))

    def images(self, manifest: DatasetManifest) -> set[str]:
        """Files of the images of its cases, relative to the manifest."""
        return {case.image.uri for case in manifest.select(self.case_ids(manifest))}

    def to_line(self) -> str:
        """The shard as one line of JSON, the form in which it travels as a parameter."""
        return json.dumps(json.loads(self.to_json()), sort_keys=True, separators=(",", ":"))


def shard_label(line: str) -> str:
    """The label of a shard for progress lines; empty if the line is no shard."""
    try:
        return Shard.from_json(line).label
    except DataError:
        return ""


def plan_shards(
    manifest: DatasetManifest, config: PipelineConfig, *, dataset: str, run: str, sam2: str = ""
) -> list[Shard]:
    """The parts that prompts and masks are made in.

    Unlabelled cases in at most `config.shards` parts of almost equal voxel count, then one shard
    for each scored role that has cases. Cases of a patient may part: nothing is learnt within a
    shard. The plan depends on the manifest and the settings alone; `dataset`, `run`
    and `sam2` are the pointers that every shard carries.

    Raises:
        DataError: There is no unlabelled case.
    """
    unlabelled = manifest.with_role(Role.UNLABELLED)
    if not unlabelled:
        raise DataError(
            "The dataset has no unlabelled case, so there is nothing to prompt.",
            where=manifest.name,
            expected="at least one case with role unlabelled",
            found=manifest.split_rule,
            action="Give fewer cases the role labelled, or train with method supervised alone.",
        )
    counts = {Role.UNLABELLED: min(config.shards, len(unlabelled))}
    counts |= {role: 1 for role in config.scored_roles if manifest.with_role(role)}
    return [
        Shard(role=role, number=number, count=count, dataset=dataset, run=run, sam2=sam2)
        for role, count in counts.items()
        for number in range(1, count + 1)
    ]


def masks_for_training(
    sets: Sequence[tuple[MaskSet, Path]], manifest: DatasetManifest
) -> list[tuple[MaskSet, Path]]:
    """The mask sets that hold unlabelled cases only, in the given order, with their paths."""
    allowed = {case.case_id for case in manifest.with_role(Role.UNLABELLED)}
    return [(masks, path) for masks, path in sets if _ids(masks) <= allowed]


def to_score(sets: Sequence[tuple[S, Path]], manifest: DatasetManifest) -> list[Path]:
    """Paths of the mask or prompt sets whose cases have a truth to compare with, in order."""
    hidden = {case.case_id for case in manifest.with_role(Role.UNLABELLED)}
    return [path for found, path in sets if found.cases and not hidden & _ids(found)]


def _ids(found: MaskSet | PromptSet) -> set[str]:
    return {case.case_id for case in found.cases}


def _voxels(shape_shw: tuple[int, int, int]) -> int:
    s, h, w = shape_shw
    return s * h * w
