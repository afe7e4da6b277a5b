"""True labels at the size of the network lie where their resized image shows them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sssflow.contracts.model import IntensityRule, PatchRule, Preprocessing
from sssflow.networks.labels import labels_at_network_size
from sssflow.networks.predict import resize_images
from sssflow.networks.volumes import resize_volume

CLASSES = 3


def rules(**given):
    return Preprocessing(
        **({"size_hw": (32, 32), "intensity": IntensityRule(kind="minmax")} | given)
    )


def in_half(**given):
    patch = PatchRule(size_shw=(8, 8, 8), scale_shw=(0.5, 0.5, 0.5))
    return rules(size_hw=(8, 8), patch=patch, **given)


def rings(sides, seed=0):
    """Off-centre balls of class 1 with a core of class 2."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.arange(n).float() for n in sides], indexing="ij")
    middles = [n / 2 + 4 * (torch.rand(1, generator=generator) - 0.5) for n in sides]
    distance = sum((a - m) ** 2 for a, m in zip(axes, middles, strict=True)).sqrt()
    return (distance < min(sides) / 3).to(torch.uint8) + (distance < min(sides) / 5).to(torch.uint8)


def centre(mask):
    """Centre of gravity, as a share of every side, of a mask or an image."""
    mask = mask.double()
    axes = torch.meshgrid(*[(torch.arange(n) + 0.5) / n for n in mask.shape], indexing="ij")
    return torch.stack([(mask * a).sum() / mask.sum() for a in axes])


def drift(before, resize):
    """Mean way, in shares of a side, from the centre of balls to that of their resized labels."""
    ways = []
    for seed in range(16):
        label = rings(before, seed)
        found = resize(label)
        ways.append(centre(found > 0) - centre(label > 0))
    return torch.stack(ways).mean(0).abs().max()


def test_slices_at_half_their_size_are_not_shifted():
    half_a_pixel = 0.5 / 64
    found = drift((64, 64), lambda label: labels_at_network_size(label[None], rules(), CLASSES)[0])
    assert float(found) < 0.2 * half_a_pixel
    nearest = drift(
        (64, 64),
        lambda label: functional.interpolate(
            label[None, None].float(), (32, 32), mode="nearest-exact"
        )[0, 0],
    )
    assert float(nearest) > 0.5 * half_a_pixel


def test_volumes_at_half_their_size_are_not_shifted_and_lie_on_their_image():
    sides = (40, 40, 40)
    half_a_voxel = 0.5 / 40
    found = drift(sides, lambda label: labels_at_network_size(label, in_half(), CLASSES))
    assert float(found) < 0.2 * half_a_voxel
    label = rings(sides)
    image = resize_volume((label > 0)[None, None].float(), (20, 20, 20))[0, 0]
    small = labels_at_network_size(label, in_half(), CLASSES)
    assert small.shape == image.shape
    assert not ((image > 0.9) & (small == 0)).any()
    assert not ((image < 0.1) & (small > 0)).any()


@pytest.mark.parametrize("size_hw", [(32, 32), (50, 41), (96, 80)])
def test_with_nearest_images_the_labels_are_read_so_too(size_hw):
    label = torch.stack([rings((64, 64), seed) for seed in range(3)])
    found = labels_at_network_size(
        label, rules(size_hw=size_hw, image_interpolation="nearest"), CLASSES
    )
    nearest = resize_images(label[:, None].float(), size_hw, "nearest")[:, 0]
    assert found.dtype == torch.uint8
    assert torch.equal(found, nearest.to(torch.uint8))


def test_labels_of_the_networks_own_size_are_left_as_they_are():
    label = torch.randint(0, CLASSES, (2, 32, 32), dtype=torch.uint8)
    assert torch.equal(labels_at_network_size(label, rules(), CLASSES), label)


def test_a_sheet_of_one_pixel_is_not_averaged_away():
    """An antialiased mask of it would be weaker than its background at a third of the size."""
    label = torch.zeros(1, 96, 96, dtype=torch.uint8)
    label[:, 49, 10:80] = 2
    assert int((labels_at_network_size(label, rules(), CLASSES) == 2).sum()) > 15


def test_no_class_comes_up_between_two_others():
    """Reading labels as numbers would put class 1 between 0 and 2."""
    label = torch.zeros(4, 64, 64, dtype=torch.uint8)
    label[:, 20:40, 20:40] = 2
    for size in ((32, 32), (45, 51), (128, 128)):
        found = labels_at_network_size(label, rules(size_hw=size), CLASSES)
        assert set(found.unique().tolist()) == {0, 2}
