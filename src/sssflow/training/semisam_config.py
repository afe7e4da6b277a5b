"""Settings of `semisam`, with the two presets that its papers and its code amount to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sssflow.configuration import Config
from sssflow.prompts.config import ReliableConfig
from sssflow.training.method_config import MaskLossKind
from sssflow.training.ramps import MaskWeightKind

GeneralistPrompts = Literal["point", "box", "mask", "unc"]


class SemiSamConfig(Config):
    """A frozen generalist's masks as one more consistency target, with a falling weight.

    `preset: oracle_prompts` repeats what the released code of SemiSAM v1 did: it prompts from the
    true labels of the unlabelled scans. Its figures are no evidence for anything but a bound.
    """

    preset: Literal["specialist_prompts", "oracle_prompts"] = Field(
        "specialist_prompts",
        description="specialist_prompts: what the papers mean. oracle_prompts: LEAKS the true "
        "labels of unlabelled cases into the training; needs those labels by a separate argument.",
    )
    base: Literal["mean_teacher", "ua_mt", "dan"] = Field(
        "mean_teacher", description="The method that it is plugged into; see its own section."
    )
    prompts: GeneralistPrompts = Field(
        "point",
        description="point: clicks; box: of the largest confident piece, with a margin "
        "(`points.box_margin_share`); mask: the specialist's logits; unc: clicks drawn "
        "several times, the answer weighted by their agreement.",
    )
    points: ReliableConfig = Field(ReliableConfig(), description="Where clicks and boxes lie.")
    repeats: int = Field(4, ge=2, le=32, description="unc: how often clicks are drawn.")
    passes: int = Field(
        8, ge=1, le=64, description="Predictions that the specialist's uncertainty is made of."
    )
    noise_std: float = Field(0.1, ge=0, le=1, description="Noise on each of these predictions.")
    entropy_share_start: float = Field(
        0.75, gt=0, le=1, description="Largest entropy that is reliable at first, share of ln k."
    )
    entropy_share_end: float = Field(1.0, gt=0, le=1, description="The same at the last step.")
    weight: float = Field(
        0.5, ge=0, description="Of the term at its largest (v1: 0.05, half its consistency's)."
    )
    schedule: MaskWeightKind = Field("falling", description="falling: SemiSAM.")
    loss: MaskLossKind = Field("mse", description="mse: SemiSAM. dice: kinder to small classes.")
    min_predicted_iou: float = Field(
        0.5, ge=0, le=1, description="Answers that the generalist itself rates lower are unused."
    )
    area_ratio: float = Field(
        3.0, ge=1, description="Answers larger or smaller than the object by more are unused."
    )

    @property
    def draws(self) -> int:
        """Sets of clicks per object."""
        return self.repeats if self.prompts == "unc" else 1
