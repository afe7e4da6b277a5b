"""Settings of `sss_in_loop`: what the paper leaves open is a key, and two presets fill the keys.

Numbers in brackets, as (G3), are the rows of the register of open points in the research notes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from sssflow.configuration import Config, over_preset
from sssflow.prompts.config import PcswConfig

_FRAGMENT: Final[Mapping[str, Any]] = {
    "teacher": "self",
    "confidence_threshold": 0.0,
    "prompts_from": "scan",
    "dfe_residual": False,
    "dfe_width": 256,
    "unlabelled_on": "decoder",
    "labelled_loss": "bce_dice",
    "unlabelled_loss": "bce_dice",
    "ramp_share": 0.0,
    "memory": "none",
}
FRAGMENT_KEYS: Final = (*_FRAGMENT, "pcsw")
"""What the preset `fragment` changes, beside itself."""

ClipLossKind = Literal["ce_dice", "ce", "dice", "bce_dice"]


class SssInLoopConfig(Config):
    """SSS with PCSW and SAM-2 inside the training step; the student is SAM-2 (`network: sam2`).

    `preset` sets what the other keys are when they are not given: `recommended` is our decision on
    each open point, `fragment` what the authors' code fragment does, its errors of geometry mended
    and its coarse head trained (there it never is, so that its prompts would be noise).
    """

    preset: Literal["recommended", "fragment"] = Field(
        "recommended", description="Defaults of all other keys."
    )
    clip_slices: int = Field(8, ge=2, le=64, description="Neighbouring slices of one volume.")
    clips_labelled: int = Field(1, ge=1, description="Clips per step (batch_labelled is unused).")
    clips_unlabelled: int = Field(
        2, ge=1, description="Clips per step (batch_unlabelled is unused); CutMix needs two."
    )
    teacher: Literal["ema", "self"] = Field(
        "ema", description="Who labels the weak view (G2); self: the student, without gradient."
    )
    ema_decay: float = Field(0.996, ge=0, lt=1, description="Ratio min(t/(t+lag), decay) (G2).")
    ema_lag: float = Field(10.0, gt=0, le=1000, description="1: UniMatch V2's rule.")
    confidence_threshold: float = Field(
        0.95, ge=0, le=1, description="Below it a pixel of a pseudo label is unused (G3)."
    )
    unlabelled_encoder_grad: bool = Field(
        True,
        description="False: the encoder is frozen on unlabelled clips, as in the figure (G4); then "
        "a detached coarse head learns nothing from them, and unlabelled_on is decoder.",
    )
    feature_perturbation: Literal["dfe", "comp_dropout", "both", "none"] = Field(
        "dfe", description="Of strong views (G8)."
    )
    dfe_pair: Literal["weak_strong", "strong_strong"] = Field(
        "weak_strong", description="What DFE compares a strong view with, detached (G5)."
    )
    dfe_residual: bool = Field(
        True, description="Add DFE's output behind a gate from 0; false: it replaces (G6)."
    )
    dfe_levels: tuple[int, ...] = Field(
        (-1, -2, -3), min_length=1, description="Of the three maps, -1 the coarsest (G7)."
    )
    dfe_width: int = Field(64, ge=8, le=512, description="Working channels (256 in the fragment).")
    coarse_head_unlabelled: Literal["detached", "trained"] = Field(
        "detached",
        description="Whether unlabelled clips move the coarse head too (G9); detached: they reach "
        "the encoder through it.",
    )
    pcsw: PcswConfig = Field(
        default_factory=PcswConfig,
        description="Window, graph, classes, prompt slices, empty classes (G10 to G13). Inside the "
        "loop `tau_per_class` goes by class number.",
    )
    prompts_from: Literal["view", "scan"] = Field(
        "view",
        description="Coarse masks of the weak view, or of the scan as it is with the prompts "
        "carried through the view's geometry.",
    )
    labelled_loss: ClipLossKind = Field("ce_dice", description="Of both heads (G16).")
    prompted_weight: float = Field(1.0, ge=0, description="Of prompted masks on labelled clips.")
    scores_weight: float = Field(
        0.1, ge=0, description="Of predicted IoU (L1) and object score on labelled clips."
    )
    box_jitter: float = Field(
        0.1, ge=0, le=0.5, description="Of the true boxes that prompt labelled clips."
    )
    unlabelled_on: Literal["both", "decoder", "coarse"] = Field(
        "both", description="Heads that learn the pseudo labels of strong views."
    )
    unlabelled_loss: ClipLossKind = Field("ce_dice", description="Of the pseudo labels.")
    unlabelled_weight: float = Field(1.0, ge=0, description="L = (L_x + weight L_u) / 2.")
    ramp_share: float = Field(
        0.3, ge=0, le=1, description="Share of the run over which the unlabelled weight rises."
    )
    memory: Literal["self_sorting", "temporal", "none"] = Field(
        "self_sorting",
        description="How slices without a prompt are reached (G17): memories drawn from the bank "
        "of the class, SAM-2's order of slices, or not at all.",
    )
    memory_draws: int = Field(
        3, ge=0, le=16, description="Memories beside that of the nearest prompted slice."
    )
    bank_capacity: int = Field(16, ge=1, le=256, description="Memories per class.")
    bank_iou_slack: float = Field(
        0.1, ge=0, le=1, description="How much lower the predicted IoU of a newcomer may be."
    )
    bank_min_iou: float = Field(0.0, ge=0, le=1, description="Below it nothing is remembered.")
    bank_clear_every: int = Field(
        200, ge=1, description="Steps after which the banks are emptied; the encoder moves on."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("preset") == "fragment":
            given = data.get("pcsw", {})
            pcsw = {"preset": "fragment", **given} if isinstance(given, Mapping) else given
            return over_preset(cls, data, "fragment", _FRAGMENT) | {"pcsw": pcsw}
        return data

    @model_validator(mode="after")
    def _every_term_moves_the_student(self) -> Self:
        idle = not self.unlabelled_encoder_grad and self.coarse_head_unlabelled == "detached"
        if idle and self.unlabelled_on != "decoder":
            raise ValueError(
                "unlabelled_encoder_grad: false with coarse_head_unlabelled: detached leaves the "
                "coarse term of unlabelled clips nothing to move; set unlabelled_on: decoder, or "
                "coarse_head_unlabelled: trained"
            )
        return self
