"""What a trained model says of the images it saw, and of masks that taught it nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.contracts.masks import MaskSet
from sssflow.contracts.model import SeenImages, TrainedModel
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.training import stage
from sssflow.training.seen import seen_images
from sssflow.volume.packed import read_packed, write_packed


def digests(manifest: DatasetManifest, role: Role) -> tuple[str, ...]:
    return tuple(sorted(case.image.sha256 for case in manifest.with_role(role)))


def trained(out: Path) -> TrainedModel:
    return load_contract(TrainedModel, out / "model" / "model.json")


@pytest.mark.parametrize("method", ["supervised", "mean_teacher"])
def test_a_model_names_the_images_that_it_learned_from_and_was_chosen_on(
    method, tiny, tiny_config, tmp_path
):
    stage.run(tiny_config(method=method), tiny.dataset, tmp_path)
    manifest = load_contract(DatasetManifest, tiny.dataset)
    unlabelled = digests(manifest, Role.UNLABELLED) if method == "mean_teacher" else ()
    assert trained(tmp_path).seen == SeenImages(
        labelled=digests(manifest, Role.LABELLED),
        unlabelled=unlabelled,
        selection=digests(manifest, Role.VALIDATION),
    )


def test_what_the_start_saw_counts_and_an_unchosen_step_was_chosen_by_nobody(
    tiny, tiny_config, tmp_path
):
    stage.run(tiny_config(method="supervised"), tiny.dataset, tmp_path / "start")
    config = tiny_config(method="mean_teacher", selection="last")
    stage.run(config, tiny.dataset, tmp_path / "a")
    assert trained(tmp_path / "a").seen.selection == ()
    start = tmp_path / "start" / "model" / "model.json"
    stage.run(config, tiny.dataset, tmp_path / "b", start=start)
    manifest = load_contract(DatasetManifest, tiny.dataset)
    assert trained(tmp_path / "b").seen.selection == digests(manifest, Role.VALIDATION)


def test_leaked_labels_make_the_unlabelled_images_labelled_ones(tiny):
    manifest = load_contract(DatasetManifest, tiny.dataset)
    seen = seen_images(manifest, None, unlabelled=True, leaked=True, selected=False)
    both = (*digests(manifest, Role.LABELLED), *digests(manifest, Role.UNLABELLED))
    assert seen == SeenImages(labelled=tuple(sorted(both)))


@pytest.mark.parametrize(
    ("silenced", "told"),
    [
        ((0,), "SAM-2 contributed nothing on {0}: its masks hold none of it in any case."),
        ((0, 1), "SAM-2 contributed nothing to this model: its masks are empty in every case."),
        ((), None),
    ],
)
def test_masks_without_a_class_are_told_in_record_and_model(
    silenced, told, fresh_tiny, tiny_config, tmp_path
):
    folder = fresh_tiny.masks.parent
    masks = load_contract(MaskSet, fresh_tiny.masks)
    changed = []
    for case in masks.cases:
        soft_kshw = np.array(read_packed(case.probability_kshw, base=folder))
        soft_kshw[list(silenced)] = 127  # just under one half
        path = folder / "silent" / f"{case.case_id}.b2nd"
        ref = write_packed(path, soft_kshw, base=folder)
        changed.append(case.model_copy(update={"probability_kshw": ref}))
    path = save_contract(masks.model_copy(update={"cases": tuple(changed)}), folder / "silent.json")
    config = tiny_config(method="sss")
    record = stage.run(config, fresh_tiny.dataset, tmp_path / "out", masks=[path])
    expected = () if told is None else (told.format(masks.class_names[1]),)
    assert record.notes == expected
    assert trained(tmp_path / "out").warnings == expected
