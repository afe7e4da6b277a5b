"""SAM-2 masks against the coarse masks that prompted them, on cases whose truth may be read.

Unlabelled cases have no truth by type, so the comparison is made on validation and test cases that
the mask sets hold. Several files of one SAM-2 model and one prompting model (shards) are one set.
Axis letters: k foreground classes, s slices, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.base import ObjectRef, Sha256
from sssflow.contracts.dataset import Case, LabelledCase, Role
from sssflow.contracts.evaluation import Figure, MaskQuality
from sssflow.contracts.masks import CaseMasks, MaskSet, require_same_dataset
from sssflow.contracts.prompts import CasePrompts, PromptSet
from sssflow.errors import DataError
from sssflow.evaluation.aggregate import figure
from sssflow.evaluation.predictions import Labels, Scans
from sssflow.evaluation.results import CaseResult, ModelResult, TestSettings, paired_gain
from sssflow.storage.contracts import load_contract
from sssflow.volume.packed import read_packed

_HALF = 128
"""Smallest uint8 probability above one half: below it the background wins."""


@dataclass(frozen=True)
class StoredPrompts:
    """Prompts of one case and the folder that their files are relative to."""

    case: CasePrompts
    base: Path


@dataclass(frozen=True)
class StoredMasks:
    """Masks of one case, the folder they are relative to, and their prompts if given."""

    case: CaseMasks
    base: Path
    prompts: StoredPrompts | None


@dataclass
class MaskGroup:
    """All masks of one SAM-2 model from prompts of one model, by case id."""

    name: str
    cases: dict[str, StoredMasks] = field(default_factory=dict)


def load_masks(
    scans: Scans, masks: Sequence[Path], prompts: Sequence[Path]
) -> tuple[MaskGroup, ...]:
    """Read mask sets and the prompt sets they came from, joined into groups.

    Raises:
        DataError: A file cannot be read, belongs to another dataset, or a group holds a case
            twice.
    """
    dataset = scans.manifest.digest
    prompt_sets: dict[Sha256, tuple[PromptSet, Path]] = {}
    for path in prompts:
        prompt_set = load_contract(PromptSet, path)
        require_same_dataset([prompt_set.dataset_digest], dataset, what="prompts")
        prompt_sets[prompt_set.digest] = (prompt_set, path.parent)
    groups: dict[tuple[str, ...], MaskGroup] = {}
    for path in masks:
        mask_set = load_contract(MaskSet, path)
        require_same_dataset([mask_set.dataset_digest], dataset, what="masks")
        source = prompt_sets.get(mask_set.prompt_digest)
        prompter = source[0].model_digest if source else ""
        key = (mask_set.model_digest, mask_set.backend, prompter)
        group = groups.setdefault(key, MaskGroup(_name(mask_set, prompter)))
        _add(group, mask_set, path, source)
    return tuple(groups.values())


def labels_of(masks: StoredMasks, case: Case) -> Labels:
    """Arg-max over the classes, background where no class reaches one half (s, h, w)."""
    array = read_packed(masks.case.probability_kshw, base=masks.base)
    probability_kshw: NDArray[np.uint8] = array.astype(np.uint8)
    if probability_kshw.ndim != 4 or probability_kshw.shape[1:] != case.grid.shape_shw:
        raise DataError(
            "SAM-2 masks of a case do not lie on its grid.",
            where=case.case_id,
            expected=("classes", *case.grid.shape_shw),
            found=probability_kshw.shape,
            action="Run the infer stage again.",
        )
    winner = probability_kshw.argmax(axis=0) + 1
    return np.where(probability_kshw.max(axis=0) >= _HALF, winner, 0).astype(np.uint8)


def coarse_of(masks: StoredMasks, case: Case) -> Labels | None:
    """The coarse labels (s, h, w) that the prompts came from; None if they were not kept."""
    if masks.prompts is None:
        return None
    ref: ObjectRef | None = masks.prompts.case.coarse
    if ref is None:
        return None
    labels = read_packed(ref, base=masks.prompts.base, shape=case.grid.shape_shw)
    return labels.astype(np.uint8)


def comparable_cases(group: MaskGroup, scans: Scans) -> tuple[LabelledCase, ...]:
    """Validation and test cases of the group, sorted by id."""
    cases = [c for role in (Role.VALIDATION, Role.TEST) for c in scans.manifest.labelled(role)]
    return tuple(sorted((c for c in cases if c.case_id in group.cases), key=lambda c: c.case_id))


def compare(
    group: MaskGroup, scans: Scans, *, tolerances: Sequence[float], settings: TestSettings
) -> MaskQuality | None:
    """Strict Dice of SAM-2 and of the coarse masks; None if no case of the group has a truth.

    The coarse masks are compared only if every compared case carries one.
    """
    cases = comparable_cases(group, scans)
    if not cases:
        return None
    sam2, coarse = [], []
    for case in cases:
        stored = group.cases[case.case_id]
        truth = scans.truth(case)
        coarse_labels = coarse_of(stored, case)
        sam2.append(scans.score(case, labels_of(stored, case), truth, tolerances))
        if coarse_labels is not None:
            coarse.append(scans.score(case, coarse_labels, truth, tolerances))
    sam2_result = _result("SAM-2 masks", sam2)
    sam2_figure = figure(sam2_result.table("strict", "dice"), settings.resampling)
    if len(coarse) != len(sam2):
        return MaskQuality(masks=group.name, cases=len(sam2), sam2=sam2_figure)
    coarse_result = _result("coarse masks", coarse)
    coarse_figure: Figure = figure(coarse_result.table("strict", "dice"), settings.resampling)
    return MaskQuality(
        masks=group.name,
        cases=len(sam2),
        sam2=sam2_figure,
        coarse=coarse_figure,
        gain=paired_gain(sam2_result, coarse_result, settings),
    )


def _name(mask_set: MaskSet, prompter: str) -> str:
    prompted = f", prompted by model {prompter[:12]}" if prompter else ""
    return f"SAM-2 {mask_set.model_digest[:12]} ({mask_set.backend}){prompted}"


def _add(
    group: MaskGroup, mask_set: MaskSet, path: Path, source: tuple[PromptSet, Path] | None
) -> None:
    prompts: Mapping[str, CasePrompts] = (
        {case.case_id: case for case in source[0].cases} if source else {}
    )
    for case in mask_set.cases:
        if case.case_id in group.cases:
            raise DataError(
                "Two mask sets hold the same case.",
                where=path,
                found=case.case_id,
                action="Give each shard once.",
            )
        found = prompts.get(case.case_id)
        stored = StoredPrompts(found, source[1]) if found is not None and source else None
        group.cases[case.case_id] = StoredMasks(case, path.parent, stored)


def _result(name: str, cases: Sequence[CaseResult]) -> ModelResult:
    return ModelResult(name=name, digest="", method="", step=0, cases=tuple(cases))
