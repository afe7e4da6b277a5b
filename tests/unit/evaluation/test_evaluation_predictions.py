"""What the switches of test time do to a prediction, each by hand."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_place import Place

from sssflow.errors import DataError
from sssflow.evaluation import predictions
from sssflow.evaluation.config import EvaluateConfig
from sssflow.evaluation.predictions import Scans, open_models, predict_case
from sssflow.networks.postprocess import largest_component_per_class
from sssflow.networks.predict import predict_probabilities
from sssflow.volume.geometry import grid_from_affine
from sssflow.volume.intensity import normalise

AXES = ((), (1,), (2,), (1, 2))


@pytest.fixture
def opened(place: Place):
    scans = Scans.open(place.manifest_path)
    models = list(open_models(place.models, place.manifest, "cpu").values())
    return scans, models, place.manifest.cases[-1]


def probabilities(scans, model, case, axes=()):
    rule = model.description.preprocessing
    image = np.flip(normalise(scans.image(case), rule.intensity), axes)
    found = predict_probabilities(model.net, np.ascontiguousarray(image), rule)
    return np.flip(found, tuple(axis + 1 for axis in axes))


def test_flips_give_the_arg_max_of_the_mean_over_four_mirror_images(opened) -> None:
    scans, (model, _), case = opened
    mean = np.mean([probabilities(scans, model, case, axes) for axes in AXES], axis=0)
    found = predict_case(scans, [model], case, EvaluateConfig(test_time_flips=True))
    assert np.array_equal(found, mean.argmax(0))
    assert not np.array_equal(found, predict_case(scans, [model], case, EvaluateConfig()))


def test_two_models_give_the_arg_max_of_the_mean_over_both(opened) -> None:
    scans, models, case = opened
    mean = np.mean([probabilities(scans, model, case) for model in models], axis=0)
    found = predict_case(scans, models, case, EvaluateConfig())
    assert np.array_equal(found, mean.argmax(0))
    assert not np.array_equal(found, predict_case(scans, models[:1], case, EvaluateConfig()))


def test_the_largest_component_is_kept_after_everything_else(opened) -> None:
    scans, models, case = opened
    changed = 0
    for used, flips in ((models[:1], False), (models[1:], False), (models, True)):
        plain = EvaluateConfig(test_time_flips=flips)
        whole = predict_case(scans, used, case, plain)
        largest = plain.model_copy(update={"largest_component": True})
        found = predict_case(scans, used, case, largest)
        assert np.array_equal(found, largest_component_per_class(whole, 3))
        changed += not np.array_equal(found, whole)
    assert changed > 0, "or nothing was asked"


def test_a_case_that_does_not_fit_into_memory_is_named(opened, monkeypatch) -> None:
    def refuse(*_):
        raise MemoryError("Unable to allocate 7.1 PiB")

    scans, models, case = opened
    monkeypatch.setattr(predictions, "predict_volume", refuse)
    with pytest.raises(DataError, match="does not fit into memory") as caught:
        predict_case(scans, models, case, EvaluateConfig())
    assert case.case_id in str(caught.value)


def test_volumes_on_sheared_axes_are_those_of_the_voxels_body(opened) -> None:
    scans, _, case = opened
    affine = np.diag([1.25, 1.5, 8.0, 1.0])
    affine[1, 2] = 8.0 * np.tan(0.35)  # a tilted gantry: planes 8 mm apart, slid over each other
    s, h, w = case.grid.shape_shw
    tilted = case.model_copy(update={"grid": grid_from_affine((w, h, s), affine)})
    truth = np.zeros((s, h, w), np.uint8)
    found = truth.copy()
    found[0, :10, :10] = 1
    (_, measures), _ = scans.score(tilted, found, truth, (2.0,)).measures.items()
    volume_ml = 100 * 1.25 * 1.5 * 8.0 / 1000
    assert measures.strict["volume_difference_ml"] == pytest.approx(volume_ml)
