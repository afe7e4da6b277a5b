"""Which student, how wide."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sssflow.configuration import Config


class NetworkConfig(Config):
    """Settings of the student."""

    name: Literal["unet", "monai_basic_unet", "monai_dynunet"] = Field(
        "unet", description="unet: SSL4MIS U-Net; the others are MONAI's behind the same interface."
    )
    base_channels: int = Field(
        16, ge=4, le=128, description="Channels of the finest level; each level doubles them."
    )
    levels: int = Field(5, ge=3, le=6, description="Resolution levels; stride = 2^(levels-1).")
    dropout: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Factor on the dropout rates of the U-Net's levels (0.05, 0.1, 0.2, 0.3, 0.5).",
    )
