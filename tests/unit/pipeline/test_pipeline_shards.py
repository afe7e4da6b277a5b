"""Shards: an even, stable cut, and masks that reach only those who may use them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sssflow.configuration import parse_config
from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import Role
from sssflow.contracts.masks import CaseMasks, MaskSet
from sssflow.errors import DataError, UsageError
from sssflow.pipeline.config import PipelineConfig
from sssflow.pipeline.shards import Shard, masks_for_training, plan_shards, shard_label, to_score


def plan(manifest, **settings):
    return plan_shards(manifest, PipelineConfig(**settings), dataset="D", run="R")


REF = ObjectRef(uri="x", size_bytes=0, sha256="0" * 64)


def mask_set(*case_ids: str) -> MaskSet:
    return MaskSet(
        dataset_digest="0" * 64,
        prompt_digest="0" * 64,
        model_digest="0" * 64,
        backend="torch",
        config_digest="0" * 64,
        class_names=("background", "disc"),
        cases=tuple(CaseMasks(case_id=name, probability_kshw=REF) for name in case_ids),
    )


def test_two_shards_share_the_voxels_evenly(manifest) -> None:
    # 5, 4, 2, 1 slices, largest first onto the lighter part: {5, 1} and {4, 2}
    shards = plan(manifest, shards=2, scored_roles=())
    assert [shard.case_ids(manifest) for shard in shards] == [("a", "b"), ("c", "d")]


def test_every_unlabelled_case_is_in_one_shard_and_no_other_case_is(manifest) -> None:
    for count in (1, 2, 3, 4):
        shards = plan(manifest, shards=count, scored_roles=())
        assert len(shards) == count
        assert sorted(name for s in shards for name in s.case_ids(manifest)) == ["a", "b", "c", "d"]


def test_there_are_never_more_shards_than_cases(manifest) -> None:
    shards = plan(manifest, shards=50, scored_roles=())
    assert [shard.label for shard in shards] == [f"unlabelled {i}/4" for i in (1, 2, 3, 4)]


def test_a_scored_role_is_a_shard_of_its_own(manifest) -> None:
    shards = plan(manifest, shards=1, scored_roles=("validation", "test"))
    assert [(s.role, s.case_ids(manifest)) for s in shards[1:]] == [
        (Role.VALIDATION, ("v",)),
        (Role.TEST, ("t",)),
    ]


def test_a_scored_role_without_cases_makes_no_shard(manifest_of) -> None:
    manifest = manifest_of({"a": 1}, {})
    assert len(plan(manifest, shards=1, scored_roles=("validation",))) == 1


def test_a_dataset_without_unlabelled_cases_is_refused(manifest_of) -> None:
    manifest = manifest_of({"l": 1}, {"l": Role.LABELLED})
    with pytest.raises(DataError, match="no unlabelled case"):
        plan(manifest)


def test_more_than_fifty_shards_are_refused() -> None:
    with pytest.raises(UsageError, match="shards"):
        parse_config(PipelineConfig, {"shards": 51})


def test_a_shard_survives_its_travel_as_one_line(manifest) -> None:
    (shard,) = plan(manifest, shards=1, scored_roles=())
    line = shard.to_line()
    assert "\n" not in line
    assert Shard.from_json(line) == shard
    assert (shard.dataset, shard.run) == ("D", "R")
    assert shard_label(line) == "unlabelled 1/1"


def test_a_shard_needs_the_images_of_its_own_cases_alone(manifest) -> None:
    images = {case.case_id: case.image.uri for case in manifest.cases}
    for shard in plan(manifest, shards=2, scored_roles=()):
        assert shard.images(manifest) == {images[name] for name in shard.case_ids(manifest)}


def test_a_shard_is_equally_small_however_many_cases_there_are(manifest_of) -> None:
    few = plan(manifest_of({f"c{i}": 1 for i in range(5)}, {}), shards=5, scored_roles=())
    many = plan(manifest_of({f"c{i}": 1 for i in range(500)}, {}), shards=5, scored_roles=())
    assert [shard.to_line() for shard in few] == [shard.to_line() for shard in many]


def test_a_shard_of_another_dataset_is_refused(manifest, manifest_of) -> None:
    *_, last = plan(manifest, shards=4, scored_roles=())
    with pytest.raises(DataError, match="does not fit the dataset"):
        last.case_ids(manifest_of({"a": 1}, {}))


def test_the_label_of_what_is_no_shard_is_empty() -> None:
    assert shard_label("{") == ""


def test_training_gets_no_mask_of_a_case_that_has_a_truth(manifest) -> None:
    sets = [
        (mask_set("a", "b"), Path("unlabelled")),
        (mask_set("v"), Path("validation")),
        (mask_set("c", "t"), Path("mixed")),
    ]
    assert [path.name for _, path in masks_for_training(sets, manifest)] == ["unlabelled"]


def test_evaluation_gets_the_masks_of_cases_that_have_a_truth(manifest) -> None:
    sets = [
        (mask_set("a", "b"), Path("unlabelled")),
        (mask_set("v"), Path("validation")),
        (mask_set(), Path("empty")),
    ]
    assert to_score(sets, manifest) == [Path("validation")]
