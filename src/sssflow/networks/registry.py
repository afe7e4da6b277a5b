"""From a NetworkConfig to a network; a new network is one file plus one line here."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final, TypedDict

import torch

from sssflow.errors import UsageError
from sssflow.networks.base import SegmentationNet
from sssflow.networks.config import NetworkConfig
from sssflow.networks.unet import UNet
from sssflow.networks.unet3d import UNet3d
from sssflow.networks.vnet import VNet


class _Sizes(TypedDict):
    base_channels: int
    levels: int
    dropout: float


def _monai_basic_unet(class_count: int, config: NetworkConfig) -> SegmentationNet:
    # MONAI takes seconds to import: only who asks for it pays.
    from sssflow.networks.monai_nets import MonaiBasicUNet

    return MonaiBasicUNet(class_count, **_sizes(config), dimensions=config.dimensions)


def _monai_dynunet(class_count: int, config: NetworkConfig) -> SegmentationNet:
    from sssflow.networks.monai_nets import MonaiDynUNet

    return MonaiDynUNet(class_count, **_sizes(config), dimensions=config.dimensions)


def _unet(class_count: int, config: NetworkConfig) -> SegmentationNet:
    return UNet(class_count, **_sizes(config))


def _vnet(class_count: int, config: NetworkConfig) -> SegmentationNet:
    return VNet(class_count, **_sizes(config))


def _unet3d(class_count: int, config: NetworkConfig) -> SegmentationNet:
    return UNet3d(class_count, **_sizes(config))


NETWORKS: dict[str, Callable[[int, NetworkConfig], SegmentationNet]] = {
    "unet": _unet,
    "vnet": _vnet,
    "unet3d": _unet3d,
    "monai_basic_unet": _monai_basic_unet,
    "monai_dynunet": _monai_dynunet,
}

PROVIDED: Final = {"sam2": "sssflow.sam.segmenter"}
"""Networks that a later room provides: its module has `build_student(class_count, config)`.

This room knows the name alone. The module is loaded when a configuration or a stored model asks
for the network, so that whoever builds networks (training, evaluation, prompts, export) can build
this one too.
"""


def build_network(config: NetworkConfig, class_count: int, *, seed: int) -> SegmentationNet:
    """A freshly initialised network; equal arguments give bit-equal weights on CPU.

    The global random state is left as it was.

    Raises:
        UsageError: The configuration does not fit the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return _builder(config.name)(class_count, config)
        except ValueError as error:
            raise UsageError(
                "The network cannot be built.", where=f"network {config.name}", found=error
            ) from None


def _builder(name: str) -> Callable[[int, NetworkConfig], SegmentationNet]:
    if name in NETWORKS:
        return NETWORKS[name]
    build: Callable[[int, NetworkConfig], SegmentationNet] = import_module(
        PROVIDED[name]
    ).build_student
    return build


def _sizes(config: NetworkConfig) -> _Sizes:
    return {
        "base_channels": config.base_channels,
        "levels": config.levels,
        "dropout": config.dropout,
    }
