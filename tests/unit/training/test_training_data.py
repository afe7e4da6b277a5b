"""Slices in memory: order, seeds, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sssflow.contracts.dataset import DatasetManifest, Role, UnlabelledCase
from sssflow.contracts.model import Preprocessing
from sssflow.errors import DataError, UsageError
from sssflow.storage.contracts import load_contract
from sssflow.training.data import (
    batch_indices,
    derive_seed,
    load_labelled,
    load_unlabelled,
)
from sssflow.training.validate import dice_by_class, load_validation
from sssflow.volume.packed import write_packed

SMALL = Preprocessing(size_hw=(32, 32))


def test_every_slice_is_read_once_before_any_is_read_twice():
    rows = [batch_indices(7, 3, step, seed=1, stream="x") for step in range(7)]
    flat = torch.cat(rows).tolist()
    assert len(flat) == 21
    for epoch in range(3):
        assert sorted(flat[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert flat[:7] != flat[7:14]


def test_a_batch_is_a_closed_form_of_seed_stream_and_step():
    same = [batch_indices(50, 4, 30, seed=1, stream="x") for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], batch_indices(50, 4, 30, seed=2, stream="x"))
    assert not torch.equal(same[0], batch_indices(50, 4, 30, seed=1, stream="y"))


def test_a_batch_larger_than_the_stream_wraps_around():
    assert sorted(batch_indices(2, 6, 0, seed=0, stream="x").tolist()) == [0, 0, 0, 1, 1, 1]


def test_derived_seeds_are_fixed_for_ever():
    assert derive_seed(1337, "views", 0) == 2920873035784949668
    assert derive_seed(1, "a", "b") != derive_seed(1, "ab")


def manifest_and_base(tiny) -> tuple[DatasetManifest, Path]:
    return load_contract(DatasetManifest, tiny.dataset), tiny.dataset.parent


def test_streams_hold_only_their_own_role(tiny):
    manifest, base = manifest_and_base(tiny)
    labelled = load_labelled(manifest, base, SMALL, memory_gib=1)
    unlabelled = load_unlabelled(manifest, base, SMALL, memory_gib=1)
    validation = load_validation(manifest, base, SMALL, memory_gib=1)
    assert set(labelled.case_ids) == {"a1", "a2"}
    assert set(unlabelled.case_ids) == {"b1", "b2", "b3"}
    assert [case.case_id for case in validation] == ["c1"]
    assert unlabelled.label_nhw is None
    assert labelled.image_nchw.shape == (6, 1, 32, 32)
    assert labelled.label_nhw.dtype == torch.uint8
    assert set(labelled.label_nhw.unique().tolist()) == {0, 1, 2}
    assert np.array_equal(validation[0].label_shw, tiny.truth["c1"])


def test_a_dataset_without_a_labelled_case_is_refused(tiny):
    manifest, base = manifest_and_base(tiny)
    only = tuple(case for case in manifest.cases if isinstance(case, UnlabelledCase))
    with pytest.raises(DataError, match="no labelled case"):
        load_labelled(manifest.model_copy(update={"cases": only}), base, SMALL, memory_gib=1)


def test_a_method_that_needs_unlabelled_cases_says_so(tiny):
    manifest, base = manifest_and_base(tiny)
    only = manifest.labelled(Role.LABELLED)
    with pytest.raises(DataError, match="no unlabelled case"):
        load_unlabelled(manifest.model_copy(update={"cases": only}), base, SMALL, memory_gib=1)


def test_more_slices_than_memory_may_hold_are_refused_before_they_are_read(tiny):
    manifest, base = manifest_and_base(tiny)
    with pytest.raises(UsageError, match=r"train\.memory_gib, or of warmup, baseline"):
        load_labelled(manifest, base, SMALL, memory_gib=1e-6)
    with pytest.raises(UsageError, match=r"1 validation volumes of 4320 voxels"):
        load_validation(manifest, base, SMALL, memory_gib=1e-6)


def test_a_validation_image_that_is_not_finite_chooses_no_weights(tiny, tmp_path):
    manifest, _ = manifest_and_base(tiny)
    (case,) = manifest.labelled(Role.VALIDATION)
    image = np.full(case.grid.shape_shw, np.nan, np.float32)
    ref = write_packed(tmp_path / "c1.b2nd", image, base=tmp_path)
    broken = manifest.model_copy(update={"cases": (case.model_copy(update={"image": ref}),)})
    with pytest.raises(DataError, match="not finite"):
        load_validation(broken, tmp_path, SMALL, memory_gib=1)


def test_a_changed_label_file_is_refused(fresh_tiny):
    manifest, base = manifest_and_base(fresh_tiny)
    file = base / "labels" / "a1.b2nd"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="another content"):
        load_labelled(manifest, base, SMALL, memory_gib=1)


def test_dice_by_class_by_hand():
    prediction = np.array([[1, 1, 0, 2]], np.uint8)
    truth = np.array([[1, 0, 0, 0]], np.uint8)
    dice = dice_by_class(prediction, truth, 4)
    assert dice[:2].tolist() == [pytest.approx(2 / 3), 0.0]
    assert np.isnan(dice[2])
