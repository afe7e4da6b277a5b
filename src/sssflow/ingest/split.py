"""Roles by patient. Nothing here opens a file of the data set."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sssflow.contracts.dataset import Role
from sssflow.errors import DataError, DataProblems, UsageError
from sssflow.ingest.config import Amount, SplitConfig
from sssflow.ingest.layouts.base import ListName, SourceCase, SourceDataset
from sssflow.storage.plain_file import require_plain_file

DEFAULT_AMOUNTS: Mapping[Role, Amount] = {Role.TEST: 0, Role.VALIDATION: 0.1}
"""Of a role without an amount, where the data set has no list of its own."""

_OWN_LIST = "the data set's own list ({})"
_LARGEST_FILE_BYTES = 1 << 24


@dataclass(frozen=True)
class AssignedCase:
    """A case with its role. The mask of an unlabelled one is gone: no later step can open it."""

    source: SourceCase
    role: Role


@dataclass(frozen=True)
class Split:
    """All cases sorted by id, the rule in words, and the order in which labels were given."""

    cases: tuple[AssignedCase, ...]
    rule: str
    order: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def all_unlabelled(dataset: SourceDataset) -> Split:
    """No role that opens a mask: lets the images be checked although the roles are in doubt."""
    cases = (_assigned(case, {}) for case in dataset.cases)
    return Split(tuple(sorted(cases, key=lambda c: c.source.case_id)), "none")


def assign_roles(dataset: SourceDataset, config: SplitConfig) -> Split:
    """Give every patient one role.

    Raises:
        DataError: A patient would have two roles, or a patient with a role that needs masks lacks
            one (`DataProblems` with all of them), or the split file does not fit.
        UsageError: The rule asks for more patients than there are.
    """
    listed = _listed_patients(dataset)
    pool = _pool(dataset, listed)
    roles: dict[str, Role]
    if config.file is None:
        pool = _shuffled(pool, config)
        roles, rule = _by_rule(dataset, listed, pool, config)
    else:
        roles, rule = _by_file(dataset, pool, config, config.file)
    useless = _useless(dataset.cases, roles)
    kept = [case for case in dataset.cases if case.case_id not in useless]
    _check_masks(kept, roles)
    cases = sorted((_assigned(case, roles) for case in kept), key=lambda c: c.source.case_id)
    notes = [f"{len(useless)} scans without masks are left out: their patients have another role"]
    # Unlabelled patients are left out: nothing may tell whether somebody has masks of them.
    order = tuple(patient for patient in pool if roles.get(patient) == Role.LABELLED)
    return Split(tuple(cases), rule, order, tuple(notes if useless else ()))


def _assigned(case: SourceCase, roles: Mapping[str, Role]) -> AssignedCase:
    role = roles.get(case.patient_id, Role.UNLABELLED)
    return AssignedCase(case.without_label() if role == Role.UNLABELLED else case, role)


def _listed_patients(dataset: SourceDataset) -> dict[str, ListName]:
    listed: dict[str, ListName] = {}
    problems = []
    for case in dataset.cases:
        if listed.setdefault(case.patient_id, case.listed) != case.listed:
            problems.append(
                DataError(
                    "A patient is in two lists of the data set.",
                    where=case.case_id,
                    expected="every patient in one list",
                    found=f"{case.patient_id} in {listed[case.patient_id]} and {case.listed}",
                    action="Take the patient out of one of them; else test scores are flattered.",
                )
            )
    if problems:
        raise DataProblems("Patients cross the lists of the data set.", problems)
    return listed


def _pool(dataset: SourceDataset, listed: Mapping[str, ListName]) -> list[str]:
    """Patients that may be labelled, in list order: not of the val or test list, with a mask."""
    ordered = sorted(dataset.cases, key=lambda case: case.order)
    with_mask = {case.patient_id for case in ordered if case.label is not None}
    names = dict.fromkeys(case.patient_id for case in ordered)
    return [n for n in names if n in with_mask and listed[n] == ListName.TRAIN]


def _shuffled(pool: list[str], config: SplitConfig) -> list[str]:
    if config.order == "random":
        pool = sorted(pool)
        random.Random(config.seed).shuffle(pool)  # noqa: S311 - a split, no secret
    return pool


def _by_rule(
    dataset: SourceDataset,
    listed: Mapping[str, ListName],
    pool: list[str],
    config: SplitConfig,
) -> tuple[dict[str, Role], str]:
    rules = []
    roles: dict[str, Role] = {}
    if config.order == "random":
        rules.append(f"patients shuffled with seed {config.seed}")
    else:
        rules.append("patients in the order of the data set")
    size = len(pool)
    for role, list_name, amount in (
        (Role.TEST, ListName.TEST, config.test),
        (Role.VALIDATION, ListName.VALIDATION, config.validation),
    ):
        named = [patient for patient, name in listed.items() if name == list_name]
        roles.update(dict.fromkeys(named, role))
        if amount is None and list_name in dataset.list_names:
            rules.append(f"{role}: {_OWN_LIST.format(len(named))}")
            continue
        asked = DEFAULT_AMOUNTS[role] if amount is None else amount
        count = _count(asked, size, str(role), len(pool))
        taken = pool[len(pool) - count :]
        pool = pool[: len(pool) - count]
        roles.update(dict.fromkeys(taken, role))
        rules.append(f"{role}: {_last(count)}{_besides(named)}")
    chosen, words = _labelled(dataset, pool, size, config)
    roles.update(dict.fromkeys(chosen, Role.LABELLED))
    return roles, "; ".join([*rules, words, "unlabelled: the rest"])


def _last(count: int) -> str:
    return f"the last {count} of the order" if count else "none"


def _besides(named: Sequence[str]) -> str:
    return f" and {_OWN_LIST.format(len(named))}" if named else ""


def listed_in(split_rule: str, role: Role) -> int | None:
    """Patients that the data set's own list gave a role, by the rule of a split; None: no list."""
    clauses = (clause for clause in split_rule.split("; ") if clause.startswith(f"{role}: "))
    words = re.escape(_OWN_LIST.format("#")).replace(r"\#", r"(\d+)")
    found = re.search(words, next(clauses, ""))
    return None if found is None else int(found[1])


def _labelled(
    dataset: SourceDataset, pool: list[str], size: int, config: SplitConfig
) -> tuple[list[str], str]:
    if config.labelled_slices is None:
        asked = config.labelled
        count = len(pool) if asked == "all" else _count(asked, size, "labelled", len(pool))
        if not pool:
            raise _too_many("labelled", max(1, count), 0)
        count = max(1, count)
        return pool[:count], f"labelled: the first {count} of the order"
    chosen = _patients_of_first_lines(dataset.slice_patients, config.labelled_slices)
    if not set(chosen) <= set(pool):
        raise UsageError(
            "Labelled patients of the slice list have another role already.",
            where="ingest.split.labelled_slices",
            found=sorted(set(chosen) - set(pool)),
            action="Take fewer validation or test patients from the training list.",
        )
    words = f"labelled: the first {config.labelled_slices} slices ({len(chosen)} patients)"
    return chosen, words


def _patients_of_first_lines(slice_patients: Sequence[str], lines: int) -> list[str]:
    """Patients of the first `lines` lines, whose last line must end a patient."""
    head, tail = slice_patients[:lines], set(slice_patients[lines:])
    if len(head) < lines or tail.intersection(head):
        cuts = _clean_cuts(slice_patients)
        raise UsageError(
            "The slice prefix does not end with a patient.",
            where="ingest.split.labelled_slices",
            expected="one of " + ", ".join(map(str, cuts[:40])) if cuts else "a slice list",
            found=lines,
            action="Choose a number that ends with a patient, or use ingest.split.labelled.",
        )
    return list(dict.fromkeys(head))


def _clean_cuts(slice_patients: Sequence[str]) -> list[int]:
    last = {patient: index for index, patient in enumerate(slice_patients)}
    cuts, reach = [], -1
    for index, patient in enumerate(slice_patients):
        reach = max(reach, last[patient])
        if reach == index:
            cuts.append(index + 1)
    return cuts


def patients_of(amount: Amount, size: int) -> int:
    """A number of patients, or the share of a pool of `size`, rounded half up."""
    return amount if isinstance(amount, int) else int(amount * size + 0.5)


def _count(amount: Amount, size: int, what: str, left: int) -> int:
    count = patients_of(amount, size)
    if count > left:
        raise _too_many(what, count, left)
    return count


def _too_many(what: str, count: int, left: int) -> UsageError:
    return UsageError(
        "The split asks for more patients than there are.",
        where=f"ingest.split.{what}",
        expected=f"at most {left} (patients with masks that have no role yet)",
        found=count,
        action="Ask for fewer, or give the other roles fewer.",
    )


def _by_file(
    dataset: SourceDataset, pool: list[str], config: SplitConfig, path: Path
) -> tuple[dict[str, Role], str]:
    data = _read_json(path)
    if isinstance(data, list):
        return _by_folds(dataset, pool, config, data, path)
    if not isinstance(data, dict):
        raise _bad_file(path, type(data).__name__)
    known = {case.patient_id for case in dataset.cases}
    roles = _merge({str(role): _names(ids, path) for role, ids in data.items()}, known, path)
    return roles, f"roles from {path.name}"


def _by_folds(
    dataset: SourceDataset, pool: list[str], config: SplitConfig, data: list[Any], path: Path
) -> tuple[dict[str, Role], str]:
    if config.fold >= len(data) or not isinstance(data[config.fold], dict):
        raise _bad_file(path, f"{len(data)} folds, fold {config.fold} asked")
    fold = data[config.fold]
    patient_of = {case.case_id: case.patient_id for case in dataset.cases}
    sides = {
        side: [patient_of.get(name, name) for name in _names(fold.get(side), path)]
        for side in ("train", "val")
    }
    known = set(patient_of.values())
    roles = _merge({"labelled": sides["train"], "validation": sides["val"]}, known, path)
    train = [p for p in pool if p in set(sides["train"])]
    asked = config.labelled
    count = len(train) if asked == "all" else _count(asked, len(train), "labelled", len(train))
    count = max(1, count)
    roles = {p: role for p, role in roles.items() if role == Role.VALIDATION}
    roles.update(dict.fromkeys(train[:count], Role.LABELLED))
    listed = _listed_patients(dataset)
    roles.update({p: Role.TEST for p, name in listed.items() if name == ListName.TEST})
    return roles, f"fold {config.fold} of {path.name}; labelled: the first {count} of its train"


def _merge(named: Mapping[str, Iterable[str]], known: set[str], path: Path) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    problems = []
    for name, patients in named.items():
        if name not in set(Role):
            raise _bad_file(path, f"role {name!r:.80}")
        for patient in patients:
            if patient not in known:
                problems.append(
                    DataError(
                        "The split file names an unknown patient.",
                        where=path,
                        found=repr(patient)[:160],
                        action="Correct the name, or take it out.",
                    )
                )
            if roles.setdefault(patient, Role(name)) != Role(name):
                problems.append(
                    DataError(
                        "The split file gives a patient two roles.",
                        where=path,
                        found=f"{patient!r:.100} is {roles[patient]} and {name}",
                        action="Leave the patient in one role.",
                    )
                )
    if problems:
        raise DataProblems("The split file does not fit the data.", problems)
    return roles


def _useless(cases: Sequence[SourceCase], roles: Mapping[str, Role]) -> set[str]:
    """Scans of an unlabelled folder whose patient is labelled, validation or test elsewhere."""
    with_mask = {case.patient_id for case in cases if case.label is not None}
    return {
        case.case_id
        for case in cases
        if case.meant_without_mask
        and case.patient_id in with_mask
        and roles.get(case.patient_id, Role.UNLABELLED) != Role.UNLABELLED
    }


def _check_masks(cases: Iterable[SourceCase], roles: Mapping[str, Role]) -> None:
    problems = [
        DataError(
            "A case needs a mask for its role and has none.",
            where=case.case_id,
            expected=f"a mask, because its patient is {roles[case.patient_id]}",
            action="Add the mask, or let the patient be unlabelled.",
        )
        for case in cases
        if case.label is None and roles.get(case.patient_id, Role.UNLABELLED) != Role.UNLABELLED
    ]
    if problems:
        raise DataProblems("Masks are missing.", problems)


def _read_json(path: Path) -> Any:
    try:
        require_plain_file(path)
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise _bad_file(path, f"{path.stat().st_size} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad_file(path, error.strerror or "unreadable") from None
    except (ValueError, RecursionError) as error:
        raise _bad_file(path, str(error)) from None


def _names(value: object, path: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _bad_file(path, f"{value!r:.80}")
    return value


def _bad_file(path: Path, found: str) -> DataError:
    return DataError(
        "The split file cannot be used.",
        where=path,
        expected='{"labelled": [patient ids], "unlabelled": [...], "validation": [...], '
        '"test": [...]} or a list of {"train": [...], "val": [...]}',
        found=found,
        action="Correct the file.",
    )
