"""Every student keeps the same contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sssflow.contracts.model import Preprocessing
from sssflow.errors import DataError, UsageError
from sssflow.networks.config import NetworkConfig
from sssflow.networks.predict import predict_labels, predict_probabilities
from sssflow.networks.registry import NETWORKS, build_network
from sssflow.networks.trained import Provenance, load_model, save_model

NAMES = ["monai_basic_unet", "monai_dynunet", "unet"]
PROVENANCE = Provenance(("background", "a", "b"), "0" * 64, "supervised", 7)


def _build(name: str, seed: int = 0):
    return build_network(NetworkConfig(name=name, base_channels=4), 3, seed=seed)


def test_the_registry_holds_the_students() -> None:
    assert set(NETWORKS) >= {*NAMES, "vnet", "unet3d"}


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_promised_channels_and_head_gives_input_size(name: str) -> None:
    net = _build(name).eval()
    x = torch.randn(2, 1, 48, 32)
    maps = net.features(x)
    assert tuple(m.shape[1] for m in maps) == net.feature_channels == (4, 8, 16, 32, 64)
    assert [tuple(m.shape[2:]) for m in maps] == [(48 >> i, 32 >> i) for i in range(5)]
    logits = net.head(maps)
    assert logits.shape == (2, 3, 48, 32)
    assert torch.equal(logits, net(x))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_receives_a_gradient(name: str) -> None:
    net = _build(name)
    net(torch.randn(2, 1, 64, 64)).square().mean().backward()
    # A bias in front of a normalisation cancels: its gradient exists but is about zero.
    assert all(p.grad is not None for p in net.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in net.parameters()) > 10


def test_the_published_unet_has_its_known_number_of_parameters() -> None:
    net = build_network(NetworkConfig(), 4, seed=0)
    assert sum(p.numel() for p in net.parameters()) == 1_813_764


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_weights_and_leave_the_global_state_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, second, other = _build(name, 3), _build(name, 3), _build(name, 4)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    differing = zip(first.parameters(), other.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in differing)


def test_a_depth_that_basic_unet_lacks_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot be built"):
        build_network(NetworkConfig(name="monai_basic_unet", levels=4), 3, seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_comes_back_and_predicts_the_same(name: str, tmp_path) -> None:
    net = _build(name).eval()
    pre = Preprocessing(size_hw=(32, 32))
    config = NetworkConfig(name=name, base_channels=4)
    saved = save_model(tmp_path, net.state_dict(), config, pre, PROVENANCE)
    again = save_model(tmp_path / "2", net.state_dict(), config, pre, PROVENANCE)
    assert saved.digest == again.digest
    loaded = load_model(tmp_path)
    assert loaded.digest == saved.digest
    volume = np.random.default_rng(0).random((3, 20, 25), dtype=np.float32)
    want = predict_probabilities(net, volume, pre)
    have = predict_probabilities(loaded.net, volume, pre)
    assert np.array_equal(want, have)


def test_changed_weights_are_refused(tmp_path) -> None:
    net = _build("unet")
    config = NetworkConfig(base_channels=4)
    save_model(tmp_path, net.state_dict(), config, Preprocessing(), PROVENANCE)
    weights = tmp_path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(DataError, match="another content"):
        load_model(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path) -> None:
    net = _build("unet")
    config = NetworkConfig(base_channels=8)
    save_model(tmp_path, net.state_dict(), config, Preprocessing(), PROVENANCE)
    with pytest.raises(DataError, match="do not fit"):
        load_model(tmp_path)


@pytest.mark.parametrize("end", ["classify.weight", "running_var"])
def test_weights_and_statistics_that_are_not_finite_are_refused(end, tmp_path) -> None:
    state = _build("unet").state_dict()
    name = next(name for name in state if name.endswith(end))
    state[name].view(-1)[0] = float("nan")
    save_model(tmp_path, state, NetworkConfig(base_channels=4), Preprocessing(), PROVENANCE)
    with pytest.raises(DataError, match="not finite") as caught:
        load_model(tmp_path)
    assert caught.value.found == f"NaN or infinity in 1 tensors, first {name}"


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_predictions_lie_on_the_grid_of_the_case(interpolation: str) -> None:
    net = _build("unet").eval()
    pre = Preprocessing(size_hw=(32, 32), prediction_interpolation=interpolation)
    volume = np.random.default_rng(1).random((5, 21, 34), dtype=np.float32)
    probabilities = predict_probabilities(net, volume, pre, batch_slices=2)
    labels = predict_labels(net, volume, pre, batch_slices=3)
    assert probabilities.shape == (3, 5, 21, 34)
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
    assert labels.shape == (5, 21, 34)
    assert labels.dtype == np.uint8
    assert (labels == probabilities.argmax(0)).mean() > 0.999
