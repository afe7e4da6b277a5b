"""DFE against its formulas, worked step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sssflow.errors import UsageError
from sssflow.training.dfe import Dfe, DfeLevel, PointwiseMlp


def test_the_mlp_has_four_linear_layers_of_the_published_widths():
    linear = [m for m in PointwiseMlp(256).layers if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (256, 512),
        (512, 512),
        (512, 256),
        (256, 256),
    ]


def test_parameters_per_level_match_the_dossier():
    level = DfeLevel(256, 256)
    mlp = sum(p.numel() for p in level.mlp.parameters())
    conv = sum(p.numel() for p in level.align.parameters())
    assert mlp / 1e6 == pytest.approx(0.594, abs=0.002)
    assert conv / 1e6 == pytest.approx(0.590, abs=0.001)


def test_fusion_of_orthogonal_features_by_hand():
    level = DfeLevel(2, 2)
    level.mlp = nn.Identity()
    first = torch.tensor([2.0, 0.0])[None, :, None, None]
    second = torch.tensor([0.0, 4.0])[None, :, None, None]
    # s = 0, q = 0.5: 0.5 (2,0) + 0.5 (0,4) + 1 * (-2, 4).
    assert level.enhance(first, second).flatten().tolist() == pytest.approx([-1.0, 6.0])


def test_fusion_of_equal_directions_keeps_no_difference_term():
    level = DfeLevel(2, 2)
    level.mlp = nn.Identity()
    first = torch.tensor([1.0, 1.0])[None, :, None, None]
    q = 1 / (1 + math.exp(-1.0))
    expected = q * 1.0 + (1 - q) * 3.0
    assert level.enhance(first, 3 * first).flatten().tolist() == pytest.approx([expected] * 2)


def test_the_difference_of_views_almost_alike_survives_bfloat16():
    class Nothing(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    level = DfeLevel(8, 8)
    level.mlp = Nothing()
    g = torch.Generator().manual_seed(0)
    first = 1 + torch.rand((2, 8, 16, 16), generator=g).bfloat16()
    second = first + 0.2 * torch.rand(first.shape, generator=g).bfloat16()
    second[:, :2] += 0.1
    exact = level.enhance(first.float(), second.float())
    found = level.enhance(first, second)
    assert found.dtype == torch.bfloat16
    assert 0 < float(exact.abs().max()) < 1e-3
    assert float((found.float() - exact).norm() / exact.norm()) < 0.02


def test_order_matters_because_the_first_view_weighs_more_when_they_agree():
    level = DfeLevel(2, 2)
    level.mlp = nn.Identity()
    a, b = torch.tensor([1.0, 1.0])[None, :, None, None], torch.full((1, 2, 1, 1), 3.0)
    assert float(level.enhance(a, b).mean()) < 2.0 < float(level.enhance(b, a).mean())


def test_at_the_start_dfe_changes_nothing_but_its_scale_can_learn():
    torch.manual_seed(0)
    dfe = Dfe((4, 8, 16), (-1, -2), 8)
    weak = [torch.randn(2, c, 5, 5) for c in (4, 8, 16)]
    strong = [torch.randn(2, c, 5, 5) for c in (4, 8, 16)]
    out = dfe(weak, strong)
    assert all(torch.equal(o, s) for o, s in zip(out, strong, strict=True))
    sum(o.square().sum() for o in out).backward()
    assert all(float(module.scale.grad.abs()) > 0 for module in dfe.by_level)


def test_no_gradient_reaches_the_weak_features():
    level = DfeLevel(4, 4)
    nn.init.ones_(level.scale)
    weak = torch.randn(1, 4, 3, 3, requires_grad=True)
    strong = torch.randn(1, 4, 3, 3, requires_grad=True)
    level(weak, strong).square().sum().backward()
    assert weak.grad is None
    assert float(strong.grad.abs().sum()) > 0


def test_levels_share_nothing_and_the_others_pass_through():
    dfe = Dfe((4, 8, 16), (-1, 1, -2), 8)
    assert dfe.levels == (1, 2)
    assert len(dfe.by_level) == 2
    features = [torch.randn(1, c, 2, 2) for c in (4, 8, 16)]
    assert dfe(features, features)[0] is features[0]


@pytest.mark.parametrize("level", [2, -3])
def test_a_level_that_does_not_exist_is_refused_as_a_slip_in_the_settings(level):
    with pytest.raises(UsageError, match="dfe_levels") as refused:
        Dfe((4, 8), (-1, level), 8)
    assert refused.value.found == str(level)
    assert refused.value.expected == "-2 (the finest) to -1 (the coarsest), or 0 to 1"
