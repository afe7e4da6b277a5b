"""SAM-2 models by size, for any square input, with or without weights.

Official sizes come from the configuration files inside the `sam2` package; nano is the same code
with smaller numbers. Nothing here touches Hydra's global state or the working directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

import sam2
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from sam2.modeling.sam2_base import SAM2Base

from sssflow.errors import UsageError
from sssflow.sam.config import SamSize, SamVersion

_LETTERS: Final = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
STRIDE: Final = 16
"""Input pixels per side of one image token."""
MASK_STRIDE: Final = 4
"""Input pixels per side of one value of a low-resolution mask."""


def build_sam2(size: SamSize, *, version: SamVersion = "2.1", input_size: int = 1024) -> SAM2Base:
    """A SAM-2 model with random weights, on the CPU, in evaluation mode.

    Args:
        size: One of the four official sizes, or nano.
        version: 2.0 or 2.1 (official sizes); nano follows 2.1.
        input_size: Side of the square input, a multiple of 32.

    Raises:
        UsageError: `input_size` does not fit, or nano is asked for as 2.0.
    """
    if size == "nano" and version != "2.1":
        raise UsageError("Nano SAM-2 exists as version 2.1 only.", found=version)
    config = model_config(size, version=version)
    model: SAM2Base = instantiate(config, _recursive_=True)
    set_input_size(model, input_size)
    return cast(SAM2Base, model.eval())


def model_config(size: SamSize, *, version: SamVersion = "2.1") -> DictConfig:
    """The `model` node that Hydra instantiates: the package's own file, or nano's numbers."""
    letter = _LETTERS.get(size, "t")
    name = f"sam{'2' if version == '2.0' else '2.1'}"
    folder = "sam2" if version == "2.0" else "sam2.1"
    file = Path(sam2.__file__).parent / "configs" / folder / f"{name}_hiera_{letter}.yaml"
    config = cast(DictConfig, OmegaConf.load(file)).model
    if size == "nano":
        config = OmegaConf.merge(config, OmegaConf.create(_nano_numbers()))
    return cast(DictConfig, config)


def _nano_numbers() -> dict[str, Any]:
    """What differs from tiny: 4.2 M parameters (tiny: 39 M), the same modules."""
    width, memory = 128, 64
    rope = {"embedding_dim": width, "feat_sizes": [8, 8], "dropout": 0.0}
    return {
        # A tracked slice always has a hint, so that its mask is not ambiguous: one mask.
        "multimask_min_pt_num": 1,
        "image_encoder": {
            "trunk": {
                "embed_dim": 32,
                "stages": [1, 2, 3, 1],
                "global_att_blocks": [4, 5],
                "window_spec": [8, 4, 8, 4],
                "window_pos_embed_bkg_spatial_size": [7, 7],
            },
            "neck": {
                "d_model": width,
                "backbone_channel_list": [256, 128, 64, 32],
                "position_encoding": {"num_pos_feats": width},
            },
        },
        "memory_attention": {
            "d_model": width,
            "num_layers": 2,
            "layer": {
                "d_model": width,
                "dim_feedforward": 512,
                "dropout": 0.0,
                "self_attention": rope,
                "cross_attention": {**rope, "kv_in_dim": memory},
            },
        },
        "memory_encoder": {
            "in_dim": width,
            "out_dim": memory,
            "position_encoding": {"num_pos_feats": memory},
            "mask_downsampler": {"embed_dim": width},
            "fuser": {"layer": {"dim": width, "layer_scale_init_value": 1e-2}},
        },
    }


def set_input_size(model: SAM2Base, input_size: int) -> None:
    """Adapt a model in place to another square input; weights stay as they are.

    Hiera resizes its own position embedding; rotary tables are made anew by the attention when the
    number of tokens differs, so both are right for every size.

    Raises:
        UsageError: `input_size` is not a positive multiple of 32.
    """
    if input_size < 32 or input_size % 32:
        raise UsageError(
            "SAM-2's input size does not fit.", expected="a multiple of 32", found=input_size
        )
    tokens = input_size // STRIDE
    model.image_size = input_size
    model.sam_image_embedding_size = tokens
    encoder = model.sam_prompt_encoder
    encoder.input_image_size = (input_size, input_size)
    encoder.image_embedding_size = (tokens, tokens)
    encoder.mask_input_size = (4 * tokens, 4 * tokens)


def feature_sizes(input_size: int) -> list[tuple[int, int]]:
    """Sides of the three feature maps, fine to coarse (the predictors' `_bb_feat_sizes`)."""
    return [(input_size // s, input_size // s) for s in (4, 8, 16)]


def parameter_count(model: torch.nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters())
