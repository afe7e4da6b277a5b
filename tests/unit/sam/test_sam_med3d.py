"""SAM-Med3D: official names and shapes, literal formulas, hostile files, prompts of volumes."""

from __future__ import annotations

import math
from argparse import Namespace

import numpy as np
import pytest
import torch

from sssflow.errors import DataError, UsageError
from sssflow.sam.config import GeneralistConfig
from sssflow.sam.generalist import load_generalist
from sssflow.sam.med3d import ImageAttention, Med3dShape, PromptEncoder, SamMed3d
from sssflow.sam.med3d_generalist import Med3dGeneralist, load_med3d, standardised, to_cube
from sssflow.sam.promptable import Generalist, Region

SMALL = Med3dShape(32, 24, 2, 2, 3, (1,), 48, 32)
CONFIG = GeneralistConfig(kind="sam_med3d")


def small_model(seed=0):
    torch.manual_seed(seed)
    model = SamMed3d(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def region(points, labels, shape=(8, 16, 16), sample=0, rough=None):
    support = np.zeros(shape, np.bool_)
    support[2:5, 4:9, 4:9] = True
    points = np.array(points, np.int64).reshape(-1, 3)
    return Region(sample, points, np.array(labels, np.int64), support, rough=rough)


def test_the_official_model_has_the_official_names_shapes_and_size():
    state = SamMed3d(Med3dShape()).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    expected = {
        "image_encoder.patch_embed.proj.weight": (768, 1, 16, 16, 16),
        "image_encoder.pos_embed": (1, 8, 8, 8, 768),
        "image_encoder.blocks.0.attn.rel_pos_d": (27, 64),
        "image_encoder.blocks.2.attn.rel_pos_w": (15, 64),
        "image_encoder.blocks.11.attn.qkv.weight": (2304, 768),
        "image_encoder.blocks.11.mlp.lin1.weight": (3072, 768),
        "image_encoder.neck.0.weight": (384, 768, 1, 1, 1),
        "image_encoder.neck.2.weight": (384, 384, 3, 3, 3),
        "image_encoder.neck.3.bias": (384,),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (3, 128),
        "prompt_encoder.point_embeddings.1.weight": (1, 384),
        "prompt_encoder.not_a_point_embed.weight": (1, 384),
        "prompt_encoder.mask_downscaling.6.weight": (384, 16, 1, 1, 1),
        "prompt_encoder.no_mask_embed.weight": (1, 384),
        "mask_decoder.transformer.layers.1.self_attn.q_proj.weight": (384, 384),
        "mask_decoder.transformer.layers.0.cross_attn_image_to_token.q_proj.weight": (192, 384),
        "mask_decoder.transformer.layers.0.mlp.lin1.weight": (2048, 384),
        "mask_decoder.transformer.final_attn_token_to_image.out_proj.weight": (384, 192),
        "mask_decoder.transformer.norm_final_attn.weight": (384,),
        "mask_decoder.mask_tokens.weight": (4, 384),
        "mask_decoder.output_upscaling.0.weight": (384, 96, 2, 2, 2),
        "mask_decoder.output_upscaling.3.weight": (96, 48, 2, 2, 2),
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight": (48, 384),
        "mask_decoder.iou_prediction_head.layers.0.weight": (256, 384),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    blocks = [n for n in shapes if n.startswith("image_encoder.blocks.")]
    assert len(blocks) == 12 * 15
    assert {n.split(".")[0] for n in shapes} == {"image_encoder", "prompt_encoder", "mask_decoder"}


def test_relative_positions_sit_on_the_axes_of_the_official_code():
    torch.manual_seed(1)
    attention = ImageAttention(4, 2, 2)
    for axis in "dhw":
        torch.nn.init.normal_(getattr(attention, f"rel_pos_{axis}"))
    q = torch.randn(1, 2, 2, 2, 2)
    found = attention._relative(q).detach()

    def product(axis, at, query, key):
        row = getattr(attention, f"rel_pos_{axis}")[query - key + 1]
        return q[0, at[0], at[1], at[2]] @ row.detach()

    assert found.shape == (1, 2, 2, 2, 2, 2, 2)
    for d, h, w, i, j, k in np.ndindex(2, 2, 2, 2, 2, 2):
        expected = (
            product("d", (d, h, w), d, k)
            + product("h", (d, h, i), h, k)
            + product("w", (d, h, j), j, k)
        )
        assert float(found[0, d, h, w, i, j, k]) == pytest.approx(float(expected), abs=1e-5)


def test_tokens_beyond_the_grid_take_part_in_windowed_attention():
    torch.manual_seed(0)
    model = SamMed3d(SMALL)
    block = model.image_encoder.blocks[0]
    x = torch.randn(1, 2, 2, 2, 24)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1, 0, 1))
    expected = block.attn(padded)[:, :2, :2, :2]
    torch.testing.assert_close(block._windowed(x), expected)
    assert not torch.allclose(expected, block.attn(x), atol=1e-5)


def test_position_codes_are_those_of_the_official_code():
    torch.manual_seed(0)
    encoder = PromptEncoder(SMALL)
    gaussian = encoder.pe_layer.positional_encoding_gaussian_matrix
    dense = encoder.dense_position()
    assert dense.shape == (1, 48, 2, 2, 2)
    # Token (0, 1, 1) has the code of the point (0.75, 0.25, 0.75): the first two axes swap.
    angle = 2 * math.pi * (torch.tensor([0.5, -0.5, 0.5]) @ gaussian)
    code = torch.cat([angle.sin(), angle.cos(), angle.sin()])
    torch.testing.assert_close(dense[0, :, 0, 1, 1], code)
    # A click on voxel (7, 15, 31) of 32 lies at (7.5, 15.5, 31.5) / 32.
    clicks = encoder.clicks(torch.tensor([[[7.0, 15.0, 31.0]]]), torch.tensor([[1]]))
    angle = 2 * math.pi * ((2 * torch.tensor([7.5, 15.5, 31.5]) / 32 - 1) @ gaussian)
    code = torch.cat([angle.sin(), angle.cos(), angle.sin()])
    torch.testing.assert_close(clicks[0, 0], code + encoder.point_embeddings[1].weight[0])
    torch.testing.assert_close(clicks[0, 1], encoder.not_a_point_embed.weight[0])


@pytest.mark.parametrize("wrapped", ["official", "plain", "safetensors"])
def test_a_checkpoint_of_the_right_names_and_shapes_loads_to_the_bit(wrapped, tmp_path):
    model = small_model()
    state = model.state_dict()
    path = tmp_path / "sam_med3d.pth"
    if wrapped == "official":
        rest = {"epoch": 7, "args": Namespace(lr=8e-4, task_name="x"), "losses": [0.5]}
        torch.save({"model_state_dict": state, **rest}, path)
    elif wrapped == "plain":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        path = tmp_path / "sam_med3d.safetensors"
        save_file(state, path)
    loaded = load_med3d(path, SMALL)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in state.items())
    volume = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.image_encoder(volume), model.eval().image_encoder(volume))


class _Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("mask_decoder.iou_token.weight"), "missing mask_decoder.iou_token"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (
            lambda s: s.update({"image_encoder.pos_embed": torch.zeros(1, 8, 8, 8, 24)}),
            r"image_encoder.pos_embed is \(1, 8, 8, 8, 24\), not \(1, 2, 2, 2, 24\)",
        ),
    ],
    ids=["a missing tensor", "one too many", "another shape"],
)
def test_a_misfit_is_named(damage, message, tmp_path):
    state = small_model().state_dict()
    damage(state)
    torch.save({"model_state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(DataError, match=message):
        load_med3d(tmp_path / "x.pth", SMALL)


def test_a_file_with_code_or_without_weights_is_refused(tmp_path, capsys):
    torch.save({"model_state_dict": _Code()}, tmp_path / "code.pth")
    with pytest.raises(DataError, match="more than tensors"):
        load_med3d(tmp_path / "code.pth", SMALL)
    assert "run" not in capsys.readouterr().out
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    for name in ("cut.pth", "none.pth"):
        with pytest.raises(DataError):
            load_med3d(tmp_path / name, SMALL)
    with pytest.raises(UsageError, match="needs a checkpoint"):
        load_generalist(CONFIG)


def test_masks_of_a_volume_answer_clicks_in_its_own_grid_and_leave_the_model_as_it_was():
    model = small_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    generalist = Med3dGeneralist(model, CONFIG, "0" * 64)
    assert isinstance(generalist, Generalist)
    image = torch.rand(2, 1, 8, 16, 16, requires_grad=True)
    asked = [
        region([[3, 6, 6], [7, 1, 1]], [1, 0]),
        region([[3, 6, 6], [7, 1, 1]], [1, 0], sample=1),
        region([[3, 6, 6]], [1]),
        region([], [], rough=np.ones((8, 16, 16), np.float32)),
    ]
    logits, iou = generalist.answer(image, asked)
    assert logits.shape == (4, 8, 16, 16)
    assert iou.shape == (4,)
    assert not logits.requires_grad
    assert not any(torch.allclose(logits[i], logits[j]) for i in range(4) for j in range(i))
    assert bool(((iou >= 0) & (iou <= 1)).all())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert not any(p.requires_grad for p in model.parameters())
    again, _ = generalist.answer(image, asked[1:2])
    torch.testing.assert_close(again[0], logits[1], atol=1e-5, rtol=1e-4)
    assert generalist.answer(image, [])[0].shape == (0, 8, 16, 16)


def test_slices_and_boxes_are_refused_with_what_to_do():
    generalist = Med3dGeneralist(small_model(), CONFIG, "0" * 64)
    with pytest.raises(UsageError, match="segments volumes"):
        generalist.answer(torch.zeros(1, 1, 16, 16), [])
    with pytest.raises(UsageError, match="does not understand boxes"):
        generalist.answer(torch.zeros(1, 1, 8, 16, 16), [region([], [])])


def test_clicks_are_stretched_with_the_volume_and_turn_to_x_y_z():
    found = to_cube(region([[0, 0, 0], [7, 3, 15]], [1, 1]), 32)
    # Voxel centres: (0.5 * 4, 0.5 * 2, 0.5 * 2) - 0.5, and (7.5 * 4, 3.5 * 2, 15.5 * 2) - 0.5.
    assert found.tolist() == [[0.5, 0.5, 1.5], [30.5, 6.5, 29.5]]


def test_a_volume_is_standardised_over_its_foreground():
    volume = torch.zeros(2, 1, 2, 2, 2)
    volume[0, 0, 0, 0] = torch.tensor([2.0, 4.0])
    found = standardised(volume)
    # Foreground 2 and 4: mean 3, standard deviation sqrt 2.
    assert found[0, 0, 0, 0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert float(found[0, 0, 1, 1, 1]) == pytest.approx(-3 / 2**0.5)
    assert bool((found[1] == 0).all())
