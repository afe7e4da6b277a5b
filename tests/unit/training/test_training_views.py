"""Views: what moves together, what stays, and where every number comes from."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from sssflow.training.config import CutMixConfig, StrongConfig, WeakConfig
from sssflow.training.views import paste, random_boxes, strong_view, weak_geometry

STILL = WeakConfig(
    flip_probability=0, rot90_probability=0, affine_probability=0, elastic_probability=0
)


def generator(seed=0):
    return Generator().manual_seed(seed)


def disc(rows, columns, centre, radius):
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).float()


def box_of(mask):
    rows, columns = torch.where(mask > 0.5)
    return [int(v) for v in (columns.min(), rows.min(), columns.max(), rows.max())]


def test_with_everything_off_the_view_is_the_image():
    image = torch.rand(2, 1, 12, 10)
    label = torch.randint(0, 4, (2, 12, 10), dtype=torch.uint8)
    geometry = weak_geometry((2, 12, 10), STILL, generator())
    assert torch.allclose(geometry.image(image), image, atol=1e-5)
    assert torch.equal(geometry.label(label), label)


def test_a_flip_mirrors_image_label_and_masks_alike():
    config = STILL.model_copy(update={"flip_probability": 1.0})
    image = torch.rand(1, 1, 8, 6)
    label = torch.randint(0, 3, (1, 8, 6), dtype=torch.uint8)
    geometry = weak_geometry((1, 8, 6), config, generator())
    assert torch.allclose(geometry.image(image), image.flip(2, 3), atol=1e-5)
    assert torch.allclose(geometry.soft(image), image.flip(2, 3), atol=1e-5)
    assert torch.equal(geometry.label(label), label.flip(1, 2))


def test_quarter_turns_of_a_square_are_exact():
    config = STILL.model_copy(update={"rot90_probability": 1.0})
    image = torch.rand(32, 1, 7, 7)
    out = weak_geometry((32, 7, 7), config, generator()).image(image)
    turns_seen = set()
    for before, after in zip(image, out, strict=True):
        fits = [k for k in range(4) if torch.allclose(after, before.rot90(k, (1, 2)), atol=1e-4)]
        assert len(fits) == 1
        turns_seen.add(fits[0])
    assert turns_seen == {0, 1, 2, 3}


def test_image_label_and_soft_mask_stay_on_each_other_under_every_transform():
    config = WeakConfig(affine_probability=1.0, elastic_probability=1.0, elastic_share=0.05)
    shape = disc(48, 40, (20, 24), 8)
    image = shape[None, None].repeat(16, 1, 1, 1)
    label = (2 * shape[None]).to(torch.uint8).repeat(16, 1, 1)
    geometry = weak_geometry((16, 48, 40), config, generator(3))
    moved = geometry.image(image)[:, 0]
    soft = geometry.soft(image)[:, 0]
    hard = geometry.label(label)
    assert torch.equal(moved, soft)
    assert set(hard.unique().tolist()) == {0, 2}
    disagree = ((moved > 0.5) != (hard == 2)).float().mean((1, 2))
    assert float(disagree.max()) < 0.02
    assert not torch.allclose(moved[0], moved[1])


def displaced(size, share):
    """Where 64 views read each of their pixels, in shares of the side; rows, then columns."""
    config = STILL.model_copy(update={"elastic_probability": 1.0, "elastic_share": share})
    rows = torch.linspace(0, 1, size)[:, None].expand(size, size)
    places = torch.stack([rows, rows.T]).repeat(64, 1, 1, 1)
    return places, weak_geometry((64, size, size), config, generator(2)).image(places)


def folded(size, share):
    """Share of the views that turn a part of the image over, away from the border."""
    _, moved = displaced(size, share)
    inner = moved[..., size // 8 : -size // 8, size // 8 : -size // 8]
    y, x = inner[:, 0], inner[:, 1]
    by_row, by_column = (lambda p: p.diff(dim=1)[..., 1:]), (lambda p: p.diff(dim=2)[:, 1:])
    area = by_row(y) * by_column(x) - by_column(y) * by_row(x)
    return float((area <= 0).flatten(1).any(1).float().mean())


def test_displacements_fold_no_image_and_are_the_same_share_at_every_size():
    default = WeakConfig().elastic_share
    assert default == 4 / 256
    largest = []
    for size in (32, 64, 256):
        assert folded(size, default) == folded(size, 0.02) == 0
        before, after = displaced(size, default)
        largest.append(float((after - before).abs().max()))
    assert largest == pytest.approx([largest[-1]] * 3, rel=0.1)


@pytest.mark.parametrize(("size", "least", "most"), [(64, 0.9, 1.0), (96, 0.2, 0.5)])
def test_the_four_pixels_of_before_folded_small_images(size, least, most):
    """Labels that no anatomy has: why displacements are shares (changelog)."""
    assert least <= folded(size, 4 / size) <= most


def test_the_box_of_a_disc_moves_with_the_view():
    shape = disc(40, 32, (12, 20), 5)
    config = STILL.model_copy(update={"flip_probability": 1.0})
    geometry = weak_geometry((1, 40, 32), config, generator())
    assert box_of(shape) == [15, 7, 25, 17]
    moved = geometry.label(shape[None].to(torch.uint8))[0]
    assert box_of(moved) == [31 - 25, 39 - 17, 31 - 15, 39 - 7]


def test_a_rotation_does_not_distort_an_oblong_image():
    config = STILL.model_copy(
        update={"affine_probability": 1.0, "scale": 0.0, "shear": 0.0, "translation": 0.0,
                "rotation_deg": 90.0}
    )  # fmt: skip
    shape = disc(64, 32, (31, 15), 9)[None].repeat(8, 1, 1).to(torch.uint8)
    moved = weak_geometry((8, 64, 32), config, generator(1)).label(shape)
    for one in moved:
        x0, y0, x1, y1 = box_of(one)
        assert abs((x1 - x0) - (y1 - y0)) <= 1
        assert abs(int(one.sum()) - int(shape[0].sum())) < 12


@pytest.mark.parametrize("spread", [(0.0, 1.0), (-3.0, 5.0)])
def test_strong_views_change_values_but_not_places(spread):
    low, high = spread
    shape = disc(32, 32, (16, 16), 8)
    image = (low + (high - low) * shape)[None, None].repeat(12, 1, 1, 1)
    view = strong_view(image, StrongConfig(noise_probability=0.0), generator(2))
    assert view.shape == image.shape
    assert torch.isfinite(view).all()
    changed = (view - image).abs().amax((1, 2, 3)) > 1e-3
    assert changed.float().mean() > 0.5
    inside, outside = shape > 0.5, shape < 0.5
    assert (view[:, 0, 16, 16] > view[:, 0, 0, 0]).all()
    assert inside.sum() + outside.sum() == 32 * 32


@pytest.mark.parametrize("shape", [(2, 512, 384), (2, 3, 512, 512)])
def test_views_under_autocast_are_those_of_full_precision(shape):
    def views():
        g = generator(5)
        geometry = weak_geometry(shape, WeakConfig(affine_probability=1, elastic_probability=0), g)
        image = torch.rand(shape[0], 1, *shape[1:], generator=g)
        return geometry.image(image), strong_view(image, StrongConfig(blur_probability=1), g)

    expected = views()
    with torch.autocast("cpu", torch.bfloat16):
        found = views()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_strong_views_with_every_probability_zero_are_the_image():
    off = {name: 0.0 for name in StrongConfig.model_fields if name.endswith("probability")}
    image = torch.rand(3, 1, 9, 9)
    assert torch.allclose(strong_view(image, StrongConfig(**off), generator()), image, atol=1e-5)


def test_two_strong_views_differ_and_equal_seeds_agree():
    image = torch.rand(4, 1, 16, 16)
    source = generator(5)
    one, two = (strong_view(image, StrongConfig(), source) for _ in range(2))
    assert not torch.equal(one, two)
    assert torch.equal(one, strong_view(image, StrongConfig(), generator(5)))


def test_boxes_have_the_asked_area_and_lie_inside():
    config = CutMixConfig(probability=1.0, area_low=0.1, area_high=0.3, aspect=2.0)
    boxes = random_boxes(torch.Size((64, 1, 50, 40)), config, generator())
    share = boxes.float().mean((1, 2))
    assert float(share.min()) > 0.07
    assert float(share.max()) <= 0.3
    for box in boxes:
        x0, y0, x1, y1 = box_of(box.float())
        assert int(box.sum()) == (x1 - x0 + 1) * (y1 - y0 + 1)
    none = random_boxes(torch.Size((4, 1, 8, 8)), CutMixConfig(probability=0.0), generator())
    assert not none.any()


def test_paste_takes_the_partner_inside_the_box_in_every_tensor():
    boxes = torch.zeros(2, 4, 4, dtype=torch.bool)
    boxes[0, :2, :2] = True
    label = torch.stack([torch.full((4, 4), 1), torch.full((4, 4), 2)])
    out = paste(label, boxes)
    assert out[0].tolist() == [[2, 2, 1, 1], [2, 2, 1, 1], [1] * 4, [1] * 4]
    assert (out[1] == 2).all()
    image = paste(label[:, None].float(), boxes)
    assert torch.equal(image[:, 0], out.float())
    coarse = paste(torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 3, 2, 2), boxes)
    assert coarse[0, 0].tolist() == [[2, 1], [1, 1]]
