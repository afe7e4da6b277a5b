"""Which student, how wide."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sssflow.configuration import Config

_ONLY = {"unet": 2, "vnet": 3, "unet3d": 3, "sam2": 2}
"""Networks that exist in one form only."""


class Sam2StudentConfig(Config):
    """SAM-2 as the student (network name sam2)."""

    size: Literal["nano", "tiny", "small", "base_plus", "large"] = Field(
        "nano", description="nano, or one of the four official sizes."
    )
    version: Literal["2.0", "2.1"] = Field("2.1", description="Official model; nano is 2.1.")
    weights: str = Field(
        "packaged",
        description="What training starts from: packaged (nano only), random, or the path of a "
        ".pt or safetensors file. A trained model carries its own weights.",
    )
    coarse_head: Literal["pyramid", "fine"] = Field(
        "pyramid",
        description="What the coarse head D_sam reads: all three feature maps, or the finest alone "
        "(the code fragment of SSS).",
    )
    coarse_width: int = Field(64, ge=8, le=512, description="Channels inside the coarse head.")


class NetworkConfig(Config):
    """Settings of the student."""

    name: Literal["unet", "vnet", "unet3d", "monai_basic_unet", "monai_dynunet", "sam2"] = Field(
        "unet",
        description="unet: SSL4MIS's 2-D U-Net; vnet: UA-MT's V-Net and unet3d: SSL4MIS's 3-D "
        "U-Net, both 3-D; monai_*: MONAI's, 2-D or 3-D; sam2: SAM-2's image encoder, 2-D.",
    )
    dimensions: Literal[2, 3] = Field(
        2, description="2: slices; 3: patches of volumes (preprocessing.patch)."
    )
    base_channels: int = Field(
        16, ge=4, le=128, description="Channels of the finest level; each level doubles them."
    )
    levels: int = Field(5, ge=3, le=6, description="Resolution levels; stride = 2^(levels-1).")
    dropout: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Factor on the published dropout rates: unet 0.05, 0.1, 0.2, 0.3, 0.5 by "
        "level; vnet 0.5 and unet3d 0.3 after the coarsest level and before the last convolution.",
    )

    sam2: Sam2StudentConfig = Field(
        Sam2StudentConfig(), description="sam2 only; it ignores the channels and levels above."
    )

    @property
    def stride(self) -> int:
        """What the sides of the input must be multiples of."""
        return 32 if self.name == "sam2" else int(2 ** (self.levels - 1))

    @property
    def weights_file(self) -> str | None:
        """The file that a fresh student starts from, where the settings name one."""
        named = self.name == "sam2" and self.sam2.weights not in ("packaged", "random")
        return self.sam2.weights if named else None

    @model_validator(mode="after")
    def _name_knows_the_dimensions(self) -> Self:
        known = _ONLY.get(self.name)
        if known is not None and known != self.dimensions:
            raise ValueError(f"{self.name} is a {known}-D network: set dimensions={known}")
        return self
