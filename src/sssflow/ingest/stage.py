"""The ingest stage: a folder of scans in, a packed dataset and its manifest out."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sssflow.contracts.base import Record
from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Role, UnlabelledCase
from sssflow.errors import DataError, DataProblems, UsageError
from sssflow.ingest.config import IngestConfig
from sssflow.ingest.layouts import find_layout
from sssflow.ingest.layouts.base import LayoutOptions, SourceDataset
from sssflow.ingest.pack import Packer, refuse_nested
from sssflow.ingest.quantise import require_storable
from sssflow.ingest.split import Split, all_unlabelled, assign_roles
from sssflow.ingest.verify import (
    CaseFacts,
    check_case,
    copies_under_two_patients,
    copy_problem,
    facts_of,
    must_refuse,
    source_digest,
)
from sssflow.volume.geometry import axis_letters

_LOG = logging.getLogger(__name__)

_USUAL_SPACING_MM = (0.02, 50.0)

Progress = Callable[[int, int, str], None]
"""Called with (cases done, cases in all, id of the case just done)."""


class Problem(Record):
    """One thing that is wrong, in the words of the error."""

    what: str
    where: str
    expected: str
    found: str
    action: str


class CheckReport(Record):
    """What `data check` found. Without problems the summary describes the whole data set."""

    layout: str = ""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = Field((), description="Not wrong, but good to know.")
    split_rule: str = ""
    class_names: tuple[str, ...] = ()
    cases: int = 0
    patients: int = 0
    cases_per_role: dict[str, int] = Field({}, description="Role to number of cases.")
    patients_per_role: dict[str, int] = Field({}, description="Role to number of patients.")
    shapes_shw: dict[str, int] = Field({}, description="'s x h x w' to number of cases.")
    spacings_shw_mm: dict[str, int] = Field({}, description="Likewise; 'unknown' without one.")
    voxels_per_class: dict[str, int] = Field({}, description="Over the masks that may be read.")
    masks_unread: int = Field(0, description="Masks of patients that the split leaves unlabelled.")

    @property
    def ok(self) -> bool:
        """Whether packing would succeed."""
        return not self.problems


@dataclass(frozen=True)
class _Outcome:
    facts: list[CaseFacts]
    packed: list[LabelledCase | UnlabelledCase]
    problems: list[DataError]
    notes: list[str]


def run(
    config: IngestConfig, source: Path, out: Path, *, progress: Progress | None = None
) -> DatasetManifest:
    """Check and pack the scans below `source` into `out`.

    Writes `out/images/<case_id>.b2nd`, `out/labels/<case_id>.b2nd` and, last, `out/manifest.json`.
    Equal input and settings give equal bytes. An older dataset in `out` is replaced on success
    and untouched on failure.

    Raises:
        DataError: The scans are not what they must be (`DataProblems` with all of them).
        UsageError: The split asks for too much, CT is to be stored in 8 bits, or `out` is no place
            for a dataset.
        UnavailableError: The disk is full or read-only; nothing of this run is left.
    """
    refuse_nested(source, out)
    dataset, split, problems = _discover(config, source)
    packer = Packer(out, config.store)
    try:
        outcome = _walk(dataset, split, config, None if problems else packer, progress)
        outcome.problems[:0] = problems
        if outcome.problems:
            raise DataProblems(
                "The data set cannot be used as it is; nothing was written.",
                outcome.problems,
                action="Correct every point below, then run the same command again.",
            )
        manifest = DatasetManifest(
            name=config.name or dataset.layout,
            source_layout=dataset.layout,
            class_names=dataset.class_names,
            source_digest=source_digest(outcome.facts),
            split_rule=split.rule,
            label_order=split.order,
            cases=tuple(outcome.packed),
        )
        packer.publish(manifest)
    except BaseException:
        packer.discard()
        raise
    for note in outcome.notes:
        _LOG.warning("%s", note)
    _LOG.info("packed %d cases of layout %s into %s", len(split.cases), dataset.layout, out)
    return manifest


def check(config: IngestConfig, source: Path, *, progress: Progress | None = None) -> CheckReport:
    """Everything that `run` would refuse, without writing anything; never raises `DataError`.

    Masks of patients that the split leaves unlabelled are not opened here either.

    Raises:
        UsageError: The split asks for more patients than there are, or CT is to be in 8 bits.
    """
    try:
        dataset, split, problems = _discover(config, source)
    except DataError as error:
        return CheckReport(problems=_as_problems([error]))
    outcome = _walk(dataset, split, config, None, progress)
    outcome.problems[:0] = problems
    return _report(dataset, split, outcome)


def _discover(config: IngestConfig, source: Path) -> tuple[SourceDataset, Split, list[DataError]]:
    """Cases, roles, and what is wrong with either. Roles in doubt mean that no mask is opened."""
    layout = find_layout(config.layout, source)
    options = LayoutOptions(patient_pattern=config.patient_pattern, ct_units=config.ct_units)
    dataset = layout.discover(source, options)
    problems = [*dataset.problems, *_repeated_ids(dataset)]
    if not dataset.cases:
        nothing = DataError("No case was found.", where=source, expected=f"\n{layout.tree}")
        raise DataProblems("The folder holds no usable case.", problems or [nothing])
    for case in dataset.cases:
        require_storable(config.store, case.modality, where=case.case_id)
    try:
        return dataset, assign_roles(dataset, config.split), problems
    except DataError as error:
        return dataset, all_unlabelled(dataset), [*problems, *_flat(error)]
    except UsageError:
        # Too few patients may be due to the faults already found: these are told first.
        if not problems:
            raise
        return dataset, all_unlabelled(dataset), problems


def _repeated_ids(dataset: SourceDataset) -> list[DataError]:
    # Ids become file names, and some file systems do not tell upper from lower case.
    counts = Counter(case.case_id.casefold() for case in dataset.cases)
    return [
        DataError(
            "Two cases have the same id.",
            where=", ".join(c.image.where for c in dataset.cases if c.case_id.casefold() == name),
            expected="ids that differ in more than upper and lower case",
            found=name,
            action="Rename or remove one of them.",
        )
        for name, count in sorted(counts.items())
        if count > 1
    ]


def _walk(
    dataset: SourceDataset,
    split: Split,
    config: IngestConfig,
    packer: Packer | None,
    progress: Progress | None,
) -> _Outcome:
    """One pass over all cases; after the first problem cases are checked but not written."""
    outcome = _Outcome([], [], [], [*dataset.notes, *split.notes])
    classes = len(dataset.class_names)
    for done, case in enumerate(split.cases, start=1):
        checked, problems = check_case(case, classes, config)
        outcome.problems.extend(problems)
        if checked is not None:
            outcome.facts.append(facts_of(case, checked, classes))
            if packer is not None and not outcome.problems:
                outcome.packed.append(packer.add(case, checked))
        if progress is not None:
            progress(done, len(split.cases), case.source.case_id)
    for same in copies_under_two_patients(outcome.facts):
        if must_refuse(same, config):
            outcome.problems.append(copy_problem(same))
        else:
            names = ", ".join(fact.case_id for fact in same)
            outcome.notes.append(f"{names}: the same image under different patients")
    outcome.notes.extend(_empty_masks(outcome.facts))
    # A case with a problem is not among the facts: what the others lack, it may show.
    unseen = () if outcome.problems else _unseen_classes(outcome.facts, dataset.class_names)
    if unseen and len(unseen) == classes - 1:
        outcome.problems.append(_nothing_to_learn())
    elif unseen:
        names = ", ".join(unseen)
        outcome.notes.append(f"no labelled case shows {names}: no model can learn it from these")
    if not any(case.role is Role.LABELLED for case in split.cases):
        outcome.notes.append("no patient is labelled: nothing can be trained on these")
    outcome.notes.extend(_two_voxel_sizes(outcome.facts))
    outcome.notes.extend(_odd_spacings(outcome.facts))
    outcome.notes.extend(_mixed_axes(outcome.facts))
    return outcome


def _report(dataset: SourceDataset, split: Split, outcome: _Outcome) -> CheckReport:
    facts = outcome.facts
    roles = {case.source.patient_id: case.role for case in split.cases}
    totals: Counter[str] = Counter()
    for fact in facts:
        totals.update(dict(zip(dataset.class_names, fact.voxels_per_class, strict=False)))
    return CheckReport(
        layout=dataset.layout,
        problems=_as_problems(outcome.problems),
        notes=tuple(outcome.notes),
        split_rule=split.rule,
        class_names=dataset.class_names,
        cases=len(split.cases),
        patients=len(roles),
        cases_per_role=_per_role([case.role for case in split.cases]),
        patients_per_role=_per_role(list(roles.values())),
        shapes_shw=_tally(" x ".join(map(str, fact.grid.shape_shw)) for fact in facts),
        spacings_shw_mm=_tally(_spacing_text(fact) for fact in facts),
        voxels_per_class=dict(totals),
        masks_unread=sum(case.label is not None for case in dataset.cases)
        - sum(case.source.label is not None for case in split.cases),
    )


def _nothing_to_learn() -> DataError:
    return DataError(
        "The masks of all labelled cases are empty.",
        expected="at least one voxel of a class",
        action="Give patients whose masks show something the role labelled.",
    )


def _empty_masks(facts: list[CaseFacts]) -> list[str]:
    empty = [f.case_id for f in facts if f.voxels_per_class and not any(f.voxels_per_class[1:])]
    return [f"{case_id}: the mask is all background" for case_id in empty]


def _unseen_classes(facts: list[CaseFacts], class_names: Sequence[str]) -> tuple[str, ...]:
    """Classes of which no labelled case has a voxel; none where nothing is labelled."""
    labelled = [fact.voxels_per_class for fact in facts if fact.role is Role.LABELLED]
    totals = [sum(counts) for counts in zip(*labelled, strict=True)]
    return tuple(n for n, total in zip(class_names[1:], totals[1:], strict=False) if not total)


def _two_voxel_sizes(facts: list[CaseFacts]) -> list[str]:
    """A note where a header contradicts itself, with the size that was taken."""
    found = [fact for fact in facts if fact.sform_set_aside]
    if not found:
        return []
    return [
        f"{len(found)} case(s), such as {found[0].case_id}, have a sform of other voxel sizes than "
        f"the header's pixdim and qform: these are taken ({_spacing_text(found[0])} mm there), as "
        "ITK does"
    ]


def _odd_spacings(facts: list[CaseFacts]) -> list[str]:
    """A note where voxels have a size that no scanner gives: metres or micrometres, mostly."""
    low, high = _USUAL_SPACING_MM
    odd = [
        fact
        for fact in facts
        if fact.grid.spacing_known
        and not all(low <= value <= high for value in fact.grid.spacing_shw_mm)
    ]
    if not odd:
        return []
    return [
        f"{len(odd)} case(s), such as {odd[0].case_id} with {_spacing_text(odd[0])} mm, have "
        f"voxels outside {low:g} to {high:g} mm: is the unit right? Every figure in mm and ml "
        "depends on it"
    ]


def _mixed_axes(facts: list[CaseFacts]) -> list[str]:
    """A note where files of one data set store the body along other axes than others do."""
    cases: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        if fact.grid.spacing_known:
            cases[axis_letters(fact.grid)].append(fact.case_id)
    if len(cases) < 2:
        return []
    common = sorted(cases.items(), key=lambda item: (-len(item[1]), item[0]))
    named = "; ".join(f"{letters} in {len(ids)}, such as {ids[0]}" for letters, ids in common[:4])
    return [
        f"the axes of the files run along different directions of the body ({named}): slices are "
        "cut along the third axis and never turned, so that a network sees some mirrored or in "
        "another plane; bring all scans into one orientation, and later ones too"
    ]


def _per_role(roles: list[Role]) -> dict[str, int]:
    return {role.value: roles.count(role) for role in Role}


def _tally(texts: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(texts).items()))


def _spacing_text(fact: CaseFacts) -> str:
    if not fact.grid.spacing_known:
        return "unknown"
    return " x ".join(f"{value:.4g}" for value in fact.grid.spacing_shw_mm)


def _as_problems(errors: list[DataError]) -> tuple[Problem, ...]:
    return tuple(
        Problem(what=e.what, where=e.where, expected=e.expected, found=e.found, action=e.action)
        for error in errors
        for e in _flat(error)
    )


def _flat(error: DataError) -> tuple[DataError, ...]:
    return error.problems if isinstance(error, DataProblems) else (error,)
