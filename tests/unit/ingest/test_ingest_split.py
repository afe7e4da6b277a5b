"""Roles by patient: counts, shares, prefixes, files. No file of the data set is opened."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sssflow.configuration import load_config
from sssflow.contracts.dataset import Modality, Role
from sssflow.errors import DataError, DataProblems, UsageError
from sssflow.ingest.config import IngestConfig, SplitConfig
from sssflow.ingest.layouts.base import ListName, SourceCase, SourceDataset
from sssflow.ingest.split import Split, assign_roles
from sssflow.volume.geometry import Volume


@dataclass(frozen=True)
class Untouchable:
    """A volume that must not be read here."""

    where: str = "nowhere"

    def read(self, *, max_voxels: int) -> Volume:
        raise AssertionError("a split opened a volume")


def dataset(
    train: Sequence[str],
    val: Sequence[str] = (),
    test: Sequence[str] = (),
    bare: Sequence[str] = (),
    slice_patients: Sequence[str] = (),
) -> SourceDataset:
    """Two cases per patient; those of `bare` have no mask."""
    cases = []
    for listed, patients in (
        (ListName.TRAIN, [*train, *bare]),
        (ListName.VALIDATION, val),
        (ListName.TEST, test),
    ):
        for patient in patients:
            for phase in ("ED", "ES"):
                cases.append(
                    SourceCase(
                        case_id=f"{patient}_{phase}",
                        patient_id=patient,
                        image=Untouchable(),
                        label=None if patient in bare else Untouchable(),
                        modality=Modality.MR,
                        phase=phase,
                        listed=listed,
                        order=len(cases),
                    )
                )
    names = {ListName.VALIDATION: val, ListName.TEST: test}
    return SourceDataset(
        layout="test",
        class_names=("background", "a"),
        cases=tuple(cases),
        slice_patients=tuple(slice_patients),
        list_names=frozenset(name for name, patients in names.items() if patients),
    )


def roles(split: Split) -> dict[str, str]:
    """Patient to the initial of its role; fails if a patient has two."""
    found: dict[str, str] = {}
    for case in split.cases:
        initial = case.role.value[0]
        assert found.setdefault(case.source.patient_id, initial) == initial
    return found


def word(split: Split, order: str) -> str:
    return "".join(roles(split)[patient] for patient in order)


ORDER = "hbgadcfe"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"labelled": 2, "validation": 0}, "lluuuuuu"),
        ({"labelled": 2, "validation": 1, "test": 2}, "lluuuvtt"),
        ({"labelled": 0.25, "validation": 0.25, "test": 0.125}, "lluuuvvt"),
        ({"labelled": 8, "validation": 0}, "llllllll"),
        ({"labelled": 0.01, "validation": 0}, "luuuuuuu"),
        ({}, "luuuuuuv"),
    ],
)
def test_the_first_patients_are_labelled_and_the_last_are_held_back(
    settings: dict[str, Any], expected: str
) -> None:
    assert word(assign_roles(dataset(ORDER), SplitConfig(**settings)), ORDER) == expected


def test_the_data_sets_own_lists_are_kept_and_not_counted() -> None:
    split = assign_roles(dataset(ORDER, val="xy", test="z"), SplitConfig(labelled=3))
    assert word(split, ORDER + "xyz") == "llluuuuuvvt"
    assert "validation: the data set's own list (2)" in split.rule


def test_patients_without_masks_are_unlabelled_and_not_counted() -> None:
    split = assign_roles(
        dataset("abcd", bare="mn"), SplitConfig(labelled=0.5, validation=1, test=1)
    )
    assert word(split, "abcdmn") == "llvtuu"


def test_a_random_split_depends_on_the_seed_and_not_on_the_order_of_the_list() -> None:
    settings = [SplitConfig(order="random", seed=seed, labelled=3) for seed in (1, 1, 2)]
    first, again, other = (roles(assign_roles(dataset(ORDER), s)) for s in settings)
    shuffled = roles(assign_roles(dataset(ORDER[::-1]), settings[0]))
    assert first == again == shuffled
    assert first != other
    assert sorted(first.values()) == list("llluuuuv")


def test_the_mask_of_an_unlabelled_case_is_gone_after_the_split() -> None:
    split = assign_roles(dataset(ORDER), SplitConfig(labelled=2))
    for case in split.cases:
        assert (case.source.label is None) == (case.role == Role.UNLABELLED)


SLICES = "aaabbaccd"  # patient a comes back after b, so a cut inside "aaabba" is never clean


@pytest.mark.parametrize(("lines", "expected"), [(6, "lluu"), (8, "lllu"), (9, "llll")])
def test_a_slice_prefix_means_the_patients_of_its_lines(lines: int, expected: str) -> None:
    config = SplitConfig(labelled_slices=lines, validation=0)
    split = assign_roles(dataset("abcd", slice_patients=SLICES), config)
    assert word(split, "abcd") == expected


@pytest.mark.parametrize("lines", [1, 3, 5, 7, 10])
def test_a_slice_prefix_inside_a_patient_is_refused_with_the_clean_cuts(lines: int) -> None:
    config = SplitConfig(labelled_slices=lines, validation=0)
    with pytest.raises(UsageError, match="does not end with a patient") as caught:
        assign_roles(dataset("abcd", slice_patients=SLICES), config)
    assert caught.value.expected == "one of 6, 8, 9"
    assert caught.value.where == "ingest.split.labelled_slices"
    assert caught.value.action.endswith("or use ingest.split.labelled.")


def test_a_slice_prefix_may_not_reach_into_held_back_patients() -> None:
    config = SplitConfig(labelled_slices=8, validation=2)
    with pytest.raises(UsageError, match="another role already") as caught:
        assign_roles(dataset("abcd", slice_patients=SLICES), config)
    assert "'c'" in caught.value.found
    assert caught.value.where == "ingest.split.labelled_slices"


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"labelled": 9}, "labelled"),
        ({"labelled": 1, "validation": 8}, "labelled"),
        ({"test": 9}, "test"),
    ],
)
def test_asking_for_more_patients_than_there_are_is_a_usage_error(
    settings: dict[str, Any], asked: str
) -> None:
    with pytest.raises(UsageError, match=f"more patients than .*\n  where: ingest.split.{asked}\n"):
        assign_roles(dataset(ORDER), SplitConfig(**settings))


def test_a_share_of_one_or_more_is_no_share(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("split: {labelled: 7.0}")
    with pytest.raises(UsageError, match="whole number or a share"):
        load_config(IngestConfig, path)


def test_roles_from_a_file_hold_and_the_rest_is_unlabelled(tmp_path: Path) -> None:
    path = tmp_path / "roles.json"
    path.write_text(json.dumps({"labelled": ["a", "d"], "validation": ["b"], "test": ["g"]}))
    split = assign_roles(dataset(ORDER, val="x"), SplitConfig(file=path))
    assert word(split, ORDER + "x") == "uvtlluuu" + "u"
    assert split.rule == "roles from roles.json"


def test_a_fold_of_nnunet_names_cases_and_splits_patients(tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    fold = {"train": ["a_ED", "a_ES", "b_ED", "c_ED"], "val": ["d_ED", "d_ES"]}
    path.write_text(json.dumps([{"train": [], "val": []}, fold]))
    config = SplitConfig(file=path, fold=1, labelled=2)
    assert word(assign_roles(dataset("cbad"), config), "cbad") == "lluv"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labelled": ["a"], "test": ["a"]}, "a patient two roles"),
        ({"labelled": ["nobody"]}, "unknown patient"),
        ([{"train": ["a_ED"], "val": ["a_ES"]}], "a patient two roles"),
        ({"training": ["a"]}, "cannot be used"),
        ({"labelled": "a"}, "cannot be used"),
        ("text", "cannot be used"),
        ([], "cannot be used"),
    ],
)
def test_a_split_file_that_does_not_fit_is_refused(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "roles.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        assign_roles(dataset(ORDER), SplitConfig(file=path))


def test_a_missing_or_broken_split_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("broken.json", "missing.json"):
        with pytest.raises(DataError, match=name):
            assign_roles(dataset(ORDER), SplitConfig(file=tmp_path / name))


def test_a_role_that_needs_masks_is_refused_for_every_case_without_one(tmp_path: Path) -> None:
    path = tmp_path / "roles.json"
    path.write_text(json.dumps({"labelled": ["a"], "test": ["m"]}))
    with pytest.raises(DataProblems) as caught:
        assign_roles(dataset("abcd", bare="m"), SplitConfig(file=path))
    assert [p.where for p in caught.value.problems] == ["m_ED", "m_ES"]


def test_a_patient_in_two_lists_is_refused_whatever_the_rule() -> None:
    crossing = dataset("abc", val="bx", test="c")
    with pytest.raises(DataProblems) as caught:
        assign_roles(crossing, SplitConfig())
    assert {p.found.split()[0] for p in caught.value.problems} == {"b", "c"}
