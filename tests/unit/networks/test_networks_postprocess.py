"""Flips averaged and components dropped, by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sssflow.contracts.model import Preprocessing
from sssflow.networks.base import SegmentationNet
from sssflow.networks.postprocess import (
    flip_averaged_probabilities,
    largest_component_per_class,
    mean_probabilities,
)


class LeftBiased(SegmentationNet):
    """Foreground logit = column number: what it says depends on the side it looks from."""

    def __init__(self) -> None:
        super().__init__()
        self.class_count = 2
        self.feature_channels = (1,)
        self.stride = 1
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def features(self, image_bchw: Tensor) -> list[Tensor]:
        columns = torch.arange(image_bchw.shape[-1], dtype=torch.float32)
        return [torch.zeros_like(image_bchw) + columns]

    def head(self, features: list[Tensor]) -> Tensor:
        return torch.cat([torch.zeros_like(features[0]), features[0]], dim=1)


def test_averaging_flips_makes_the_prediction_of_a_symmetric_image_symmetric() -> None:
    volume = np.zeros((2, 4, 4), np.float32)
    rule = Preprocessing(size_hw=(4, 4))
    found = flip_averaged_probabilities(LeftBiased().eval(), volume, rule)
    assert found.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(found, found[..., ::-1], atol=1e-6)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
    sides = [1 / (1 + np.exp(-0.0)), 1 / (1 + np.exp(-3.0))]
    np.testing.assert_allclose(found[1, 0, 0, 0], np.mean(sides), atol=1e-6)


def test_the_mean_of_two_models_is_taken_before_the_arg_max() -> None:
    one = np.array([[[[0.6]]], [[[0.4]]]], np.float32)
    two = np.array([[[[0.1]]], [[[0.9]]]], np.float32)
    mean = mean_probabilities([one, two])
    np.testing.assert_allclose(mean[:, 0, 0, 0], [0.35, 0.65])


def test_every_class_keeps_its_largest_piece_and_loses_the_rest() -> None:
    labels = np.zeros((2, 5, 5), np.uint8)
    labels[0, :2, :2] = 1
    labels[1, 2, 2] = 1  # touches the piece above by a corner only: one piece with it
    labels[0, 4, 4] = 1
    labels[1, 4, 0] = 2
    kept = largest_component_per_class(labels, 4)
    expected = labels.copy()
    expected[0, 4, 4] = 0
    assert kept.tolist() == expected.tolist()
    assert not largest_component_per_class(np.zeros((1, 2, 2), np.uint8), 3).any()
