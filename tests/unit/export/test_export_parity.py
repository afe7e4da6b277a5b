"""The parity gate: what it compares, and that it fails when it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.contracts.model import Preprocessing
from sssflow.errors import DataError, InternalError
from sssflow.export.config import ExportConfig
from sssflow.export.parity import (
    _same_masks,
    check_parity,
    choose_slices,
    parity_sizes,
    torch_logits,
)
from sssflow.networks.trained import LoadedModel, load_model
from sssflow.storage.contracts import load_contract

CONFIG = ExportConfig()


@pytest.fixture
def model(ready) -> LoadedModel:
    return load_model(ready.model)


@pytest.fixture
def slices(ready, model):
    manifest = load_contract(DatasetManifest, ready.dataset)
    return choose_slices(manifest, ready.dataset.parent, model.description.preprocessing, CONFIG)


def exact(model: LoadedModel):
    return lambda image_bchw: torch_logits(model.net, torch.from_numpy(image_bchw)).numpy()


def test_parity_is_tested_at_the_training_size_and_at_one_and_a_half_of_it(model) -> None:
    # stride 4: 16 x 1.5 = 24; 24 x 1.5 = 36
    assert parity_sizes(model, CONFIG) == ((16, 24), (24, 36))


def test_the_second_size_is_rounded_up_to_the_stride(model) -> None:
    # 16 x 1.1 = 17.6 -> 20; 24 x 1.1 = 26.4 -> 28
    assert parity_sizes(model, ExportConfig(second_scale=1.1))[1] == (20, 28)


def test_the_second_size_differs_from_the_first_even_with_scale_one(model) -> None:
    assert parity_sizes(model, ExportConfig(second_scale=1.0)) == ((16, 24), (20, 28))


def test_slices_come_evenly_from_the_validation_cases(ready) -> None:
    manifest = load_contract(DatasetManifest, ready.dataset)
    (part,) = choose_slices(manifest, ready.dataset.parent, Preprocessing(), CONFIG)
    # centres of four quarters of ten slices: 1.25, 3.75, 6.25, 8.75
    assert part.source == "validation case d, slices 1, 3, 6, 8"
    assert part.image_shw.shape == (4, 20, 24)
    assert part.image_shw.min() == 0.0
    assert part.image_shw.max() == 1.0


def test_without_validation_and_test_cases_labelled_ones_serve(ready) -> None:
    manifest = load_contract(DatasetManifest, ready.dataset)
    kept = tuple(case for case in manifest.cases if case.role != Role.VALIDATION)
    manifest = manifest.model_copy(update={"cases": kept})
    (part,) = choose_slices(manifest, ready.dataset.parent, Preprocessing(), CONFIG)
    assert part.source.startswith("labelled case a,")


def test_an_equal_graph_passes_with_one_figure_per_case_and_size(model, slices) -> None:
    figures = check_parity(exact(model), model, slices, CONFIG)
    assert [figure.shape for figure in figures] == [(4, 1, 16, 24), (4, 1, 24, 36)]
    assert all(f.max_abs_difference == 0.0 and f.masks_equal for f in figures)


def test_a_graph_off_by_twice_the_tolerance_is_refused_with_the_figure(model, slices) -> None:
    def wrong(image_bchw):
        return exact(model)(image_bchw) + np.float32(2e-4)

    with pytest.raises(InternalError, match=r"largest difference 0\.0002\d*, masks equal; 2 of 2"):
        check_parity(wrong, model, slices, CONFIG)


def test_a_graph_that_fails_at_the_second_size_only_is_refused(model, slices) -> None:
    def wrong(image_bchw):
        logits = exact(model)(image_bchw)
        return logits if image_bchw.shape[-1] == 24 else logits + 1

    with pytest.raises(InternalError, match="1 of 2 comparisons failed"):
        check_parity(wrong, model, slices, CONFIG)


def test_a_graph_that_gives_nan_is_refused(model, slices) -> None:
    def broken(image_bchw):
        return np.full_like(exact(model)(image_bchw), np.nan)

    with pytest.raises(InternalError, match="masks different"):
        check_parity(broken, model, slices, CONFIG)


def test_a_model_whose_own_logits_are_not_finite_is_refused(model, slices) -> None:
    with torch.no_grad():
        next(model.net.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        check_parity(exact(model), model, slices, CONFIG)


def logits_of_one_pixel(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def test_another_winner_of_a_decided_pixel_is_a_difference() -> None:
    assert not _same_masks(logits_of_one_pixel(0.0, 0.1), logits_of_one_pixel(0.1, 0.0))


def test_another_winner_of_a_tied_pixel_is_none() -> None:
    assert _same_masks(logits_of_one_pixel(0.0, 1e-7), logits_of_one_pixel(1e-7, 0.0))


def test_a_damaged_image_is_refused(ready, tmp_path: Path) -> None:
    manifest = load_contract(DatasetManifest, ready.dataset)
    with pytest.raises(DataError, match="missing"):
        choose_slices(manifest, tmp_path, Preprocessing(), CONFIG)
