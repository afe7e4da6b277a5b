"""3-D students and the sliding window: shapes, published sizes, hand-computed overlaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sssflow.contracts.model import PatchRule, Preprocessing, SlidingWindow, TrainedModel
from sssflow.errors import UsageError
from sssflow.networks.base import SegmentationNet
from sssflow.networks.config import NetworkConfig
from sssflow.networks.predict import predict_labels, predict_probabilities
from sssflow.networks.registry import build_network
from sssflow.networks.trained import Provenance, load_model, save_model
from sssflow.networks.volumes import (
    pad_to,
    resize_volume,
    scaled_shape,
    slide,
    strides,
    window_starts,
    window_weights,
)
from sssflow.prompts.coarse import coarse_labels

NAMES = ["vnet", "unet3d", "monai_basic_unet", "monai_dynunet"]
LA = PatchRule(window=SlidingWindow(stride_shw=(4, 18, 18), weights="uniform"))


def build(name: str, levels: int = 5) -> SegmentationNet:
    config = NetworkConfig(name=name, dimensions=3, base_channels=4, levels=levels)
    return build_network(config, 3, seed=0)


class Pointwise(SegmentationNet):
    """Logits that depend on one voxel only: every window must give what the whole volume gives."""

    dimensions = 3
    stride = 1
    feature_channels = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.class_count = 2
        self.scale = nn.Parameter(torch.tensor([[-2.0], [3.0]]).view(2, 1, 1, 1))

    def features(self, image):
        return [image]

    def head(self, features):
        return features[0] * self.scale


@pytest.mark.parametrize("name", NAMES)
def test_features_and_logits_have_the_promised_shapes(name):
    net = build(name).eval()
    assert net.dimensions == 3
    assert net.stride == 16
    image = torch.randn(2, 1, 16, 48, 32)
    maps = net.features(image)
    assert tuple(m.shape[1] for m in maps) == net.feature_channels == (4, 8, 16, 32, 64)
    assert [tuple(m.shape[2:]) for m in maps] == [(16 >> i, 48 >> i, 32 >> i) for i in range(5)]
    logits = net.head(maps)
    assert logits.shape == (2, 3, 16, 48, 32)
    assert torch.equal(logits, net(image))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_receives_a_gradient(name):
    net = build(name)
    net(torch.randn(2, 1, 16, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in net.parameters()) > 10


def test_the_vnet_has_the_parameters_of_its_published_definition():
    """Summed layer by layer from UA-MT's networks/vnet.py (16 filters, batch norm, two classes)."""

    def layer(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**3 + outputs + 2 * outputs

    widths, stages = (16, 32, 64, 128, 256), (1, 2, 3, 3, 3)
    wanted = layer(1, 16, 3) + layer(16, 16, 3) + (16 * 2 + 2)
    for fine, coarse, count in zip(widths, widths[1:], stages[1:], strict=False):
        wanted += layer(fine, coarse, 2) + count * layer(coarse, coarse, 3)
        wanted += layer(coarse, fine, 2)
        wanted += 0 if coarse == 256 else count * layer(coarse, coarse, 3)
    net = build_network(NetworkConfig(name="vnet", dimensions=3), 2, seed=0)
    assert sum(p.numel() for p in net.parameters()) == wanted == 9_448_866


def test_the_published_dropout_is_where_it_was_and_can_be_switched_off():
    on = build_network(NetworkConfig(name="vnet", dimensions=3, base_channels=4), 2, seed=0)
    off = build_network(
        NetworkConfig(name="vnet", dimensions=3, base_channels=4, dropout=0), 2, seed=0
    )
    image = torch.randn(1, 1, 32, 32, 32)
    coarsest = on.features(image)[-1]
    dropped = (coarsest == 0).flatten(2).all(2).float().mean()
    assert 0.2 < float(dropped) < 0.8
    assert torch.equal(off.features(image)[-1], off.features(image)[-1])
    assert not torch.equal(on(image), on(image))


@pytest.mark.parametrize(("name", "dimensions"), [("unet", 3), ("vnet", 2), ("unet3d", 2)])
def test_a_network_of_the_other_dimension_is_refused_with_the_remedy(name, dimensions):
    with pytest.raises(ValidationError, match=f"set dimensions={5 - dimensions}"):
        NetworkConfig(name=name, dimensions=dimensions)


def test_a_depth_that_basic_unet_lacks_is_a_usage_error_in_3d_too():
    with pytest.raises(UsageError, match="cannot be built"):
        build("monai_basic_unet", levels=4)


def test_windows_of_the_published_la_test_by_hand():
    # 190 columns, patches of 112, every 18: ceil(78 / 18) + 1 = 6 windows, the last one at 78.
    assert window_starts(190, 112, 18) == [0, 18, 36, 54, 72, 78]
    assert window_starts(88, 80, 4) == [0, 4, 8]
    assert window_starts(112, 112, 18) == [0]
    assert strides(LA) == (4, 18, 18)
    assert strides(PatchRule(size_shw=(5, 8, 16))) == (2, 4, 8)
    assert strides(PatchRule(size_shw=(4, 4, 4), window=SlidingWindow(overlap=0.99))) == (1, 1, 1)
    far = SlidingWindow(stride_shw=(9, 9, 9))
    assert strides(PatchRule(size_shw=(4, 4, 4), window=far)) == (4, 4, 4)


def test_gaussian_weights_by_hand():
    line = window_weights((1, 1, 4), "gaussian")[0, 0]
    # Distances 1.5, 0.5, 0.5, 1.5; standard deviation 4 / 8.
    ratio = np.exp(-(1.5**2 - 0.5**2) / (2 * 0.5**2))
    assert line.tolist() == pytest.approx([ratio, 1.0, 1.0, ratio], rel=1e-5)
    assert float(window_weights((16, 16, 16), "gaussian").min()) > 0
    assert torch.equal(window_weights((2, 2, 2), "uniform"), torch.ones(2, 2, 2))


class Numbered(Pointwise):
    """The first window says class 0 surely, the second class 1, and so on alternating."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def head(self, features):
        wins = self.calls % 2
        self.calls += 1
        logits = torch.full((1, 2, *features[0].shape[2:]), -50.0)
        logits[:, wins] = 50.0
        return logits


def test_overlapping_windows_are_averaged_with_their_weights():
    volume = torch.zeros(1, 1, 6)
    rule = PatchRule(
        size_shw=(1, 1, 4), window=SlidingWindow(stride_shw=(1, 1, 2), weights="uniform")
    )
    # Windows 0..3 (class 0) and 2..5 (class 1): voxels 2 and 3 belong to both.
    probability = slide(Numbered(), volume, rule)
    assert probability[1, 0, 0].tolist() == pytest.approx([0, 0, 0.5, 0.5, 1, 1])
    smooth = rule.model_copy(update={"window": SlidingWindow(stride_shw=(1, 1, 2))})
    probability = slide(Numbered(), volume, smooth)
    ratio = float(np.exp(-4.0))
    wanted = [0, 0, ratio / (1 + ratio), 1 / (1 + ratio), 1, 1]
    assert probability[1, 0, 0].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("weights", ["gaussian", "uniform"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_pointwise_network_gives_the_same_in_windows_as_on_the_whole_volume(weights, batch):
    net = Pointwise().eval()
    volume = torch.randn(9, 13, 11)
    rule = PatchRule(size_shw=(4, 8, 16), window=SlidingWindow(overlap=0.3, weights=weights))
    windows = slide(net, volume, rule, batch=batch)
    whole = net(volume[None, None]).softmax(1)[0]
    assert windows.shape == (2, 9, 13, 11)
    assert torch.allclose(windows, whole, atol=1e-6)


def test_one_window_over_the_whole_volume_is_the_plain_forward_pass():
    net = build("vnet", levels=3).eval()
    volume = torch.randn(8, 16, 12)
    found = slide(net, volume, PatchRule(size_shw=(8, 16, 12)))
    with torch.no_grad():
        assert torch.allclose(found, net(volume[None, None]).softmax(1)[0], atol=1e-6)


def test_a_small_volume_is_padded_with_zeros_and_cut_back():
    volume = torch.ones(3, 4, 5)
    padded, (s, h, w) = pad_to(volume, (6, 4, 8))
    assert padded.shape == (6, 4, 8)
    assert (s, h, w) == (slice(1, 4), slice(0, 4), slice(1, 6))
    assert torch.equal(padded[s, h, w], volume)
    assert float(padded.sum()) == volume.numel()
    assert pad_to(volume, (1, 1, 1))[0] is volume


def test_scaling_halves_by_averaging_and_never_loses_an_axis():
    rule = PatchRule(scale_shw=(0.5, 0.5, 0.1))
    assert scaled_shape((4, 6, 3), rule) == (2, 3, 1)
    volume = torch.arange(8.0).view(1, 1, 2, 2, 2)
    assert resize_volume(volume, (1, 1, 1)).item() == 3.5
    assert resize_volume(volume, (2, 2, 2)) is volume
    assert resize_volume(volume, (3, 2, 2)).shape == (1, 1, 3, 2, 2)
    labels = resize_volume(torch.tensor([0.0, 2.0]).view(1, 1, 1, 1, 2), (1, 1, 4), "nearest")
    assert labels.flatten().tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_predictions_of_a_3d_network_lie_on_the_grid_of_the_case(interpolation):
    net = build("vnet", levels=3).eval()
    patch = PatchRule(size_shw=(4, 16, 16), scale_shw=(1.0, 0.5, 0.5))
    rule = Preprocessing(patch=patch, prediction_interpolation=interpolation)
    volume = np.random.default_rng(1).random((5, 41, 34), dtype=np.float32)
    probabilities = predict_probabilities(net, volume, rule, batch_slices=8)
    labels = predict_labels(net, volume, rule, batch_slices=1)
    assert probabilities.shape == (3, 5, 41, 34)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
    assert labels.shape == (5, 41, 34)
    assert labels.dtype == np.uint8
    assert (labels == probabilities.argmax(0)).mean() > 0.999


def test_a_saved_3d_model_comes_back_and_prompts_see_its_whole_volume(tmp_path):
    net = build("vnet", levels=3).eval()
    config = NetworkConfig(name="vnet", dimensions=3, base_channels=4, levels=3)
    rule = Preprocessing(patch=PatchRule(size_shw=(8, 16, 16)))
    about = Provenance(("background", "a", "b"), "0" * 64, "supervised", 7)
    saved = save_model(tmp_path, net.state_dict(), config, rule, about)
    assert TrainedModel.from_json(saved.to_json()) == saved
    loaded = load_model(tmp_path)
    volume = np.random.default_rng(0).normal(size=(12, 20, 20)).astype(np.float32)
    labels, confidence = coarse_labels(loaded.net, loaded.description, volume, batch_slices=2)
    minmax = (volume - volume.min()) / (volume.max() - volume.min())
    assert labels.shape == confidence.shape == minmax.shape
    assert 1 / 3 - 1e-6 <= confidence.min() <= confidence.max() <= 1
    # A chunk of two slices would be padded to patches: the middle slices would not be the same.
    again, _ = coarse_labels(loaded.net, loaded.description, volume, batch_slices=12)
    assert np.array_equal(labels, again)
