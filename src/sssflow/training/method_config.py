"""Settings of single methods: one section each, in `TrainConfig` under the method's name.

The names, the registry and the sections are held together by a test.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sssflow.configuration import Config
from sssflow.training.ramps import MaskWeightKind

PseudoLossKind = Literal["ce", "dice", "ce_dice"]
MaskLossKind = Literal["mse", "dice"]
MethodName = Literal[
    "supervised",
    "mean_teacher",
    "ua_mt",
    "cps",
    "fixmatch",
    "unimatch",
    "unimatch_v2",
    "bcp",
    "dan",
    "semisam",
    "sss",
    "sss_in_loop",
]


class MeanTeacherConfig(Config):
    """Mean Teacher."""

    ema_decay: float = Field(0.99, ge=0, lt=1, description="Ratio min(t/(t+lag), decay).")
    ema_lag: float = Field(10.0, gt=0, le=1000, description="Steps looked back are t / lag.")
    consistency_weight: float = Field(1.0, ge=0, description="Weight at the end of its ramp.")
    ramp_share: float = Field(0.4, ge=0, le=1, description="Length of the ramp, share of the run.")
    noise_std: float = Field(0.1, ge=0, le=1, description="Noise on one of the two views.")
    noise_on: Literal["student", "teacher"] = Field(
        "student", description="Whose view gets the noise; teacher: SSL4MIS and UA-MT."
    )


class UaMtConfig(MeanTeacherConfig):
    """UA-MT: Mean Teacher's settings and the uncertainty's."""

    passes: int = Field(8, ge=1, le=64, description="Predictions that the uncertainty is made of.")
    entropy_share_start: float = Field(
        0.75, gt=0, le=1, description="Largest entropy that counts at first, share of ln k."
    )
    entropy_share_end: float = Field(1.0, gt=0, le=1, description="The same at the last step.")


class CpsConfig(Config):
    """Cross pseudo supervision."""

    cross_weight: float = Field(
        0.1, ge=0, description="Weight at the end of its ramp (SSL4MIS; the paper: 1.5, no ramp)."
    )
    ramp_share: float = Field(1.0, ge=0, le=1, description="Length of the ramp, share of the run.")


class FixMatchConfig(Config):
    """FixMatch."""

    confidence_threshold: float = Field(
        0.8, ge=0, le=1, description="Below it a pixel is unused (SSL4MIS; the paper: 0.95)."
    )
    unlabelled_weight: float = Field(1.0, ge=0, description="Weight at the end of its ramp.")
    unlabelled_loss: PseudoLossKind = Field(
        "ce_dice", description="ce: the paper. ce_dice: SSL4MIS."
    )
    ramp_share: float = Field(
        0.3, ge=0, le=1, description="Length of the ramp, share of the run; 0: the paper."
    )


class UniMatchConfig(Config):
    """UniMatch V1, the form for medical images."""

    confidence_threshold: float = Field(0.95, ge=0, le=1, description="Below it: unused.")
    unlabelled_loss: PseudoLossKind = Field(
        "dice", description="ce: the paper on natural images. dice: its form for medical ones."
    )
    image_weight: float = Field(0.5, ge=0, description="Of the mean over both strong views.")
    feature_weight: float = Field(0.5, ge=0, description="Of the view with dropped channels.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of channels dropped.")
    ramp_share: float = Field(
        0.0, ge=0, le=1, description="Length of a ramp of both weights, share of the run."
    )


class BcpConfig(Config):
    """Bidirectional copy-paste; needs equal and even batches."""

    pretrain_share: float = Field(
        0.25, ge=0, le=1, description="Share of the run on labelled pairs alone (10 k of 40 k)."
    )
    box_share: float = Field(2 / 3, gt=0, lt=1, description="Side of the pasted box.")
    unlabelled_weight: float = Field(0.5, ge=0, description="alpha: weight of pseudo labels.")
    keep_largest: bool = Field(
        True, description="Of each class on a pseudo label only the largest piece is kept."
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="Ratio min(t/(t+lag), decay).")
    ema_lag: float = Field(10.0, gt=0, le=1000, description="Steps looked back are t / lag.")


class DanConfig(Config):
    """Deep adversarial network."""

    adversarial_weight: float = Field(0.1, ge=0, description="Weight at the end of its ramp.")
    ramp_share: float = Field(1.0, ge=0, le=1, description="Length of the ramp, share of the run.")
    discriminator_learning_rate: float = Field(
        1e-4, gt=0, le=1, description="Of the discriminator's own Adam; constant."
    )
    discriminator_width: int = Field(64, ge=4, le=256, description="Its first level's channels.")


class UniMatchV2Config(Config):
    """UniMatch V2; also the base of `sss`. Decay and threshold are for a few thousand steps."""

    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="Ratio min(t/(t+lag), decay). UniMatch V2: 0.996."
    )
    ema_lag: float = Field(
        10.0, gt=0, le=1000, description="1: UniMatch V2's rule, for a pretrained encoder."
    )
    confidence_threshold: float = Field(
        0.8, ge=0, le=1, description="Below it a pixel is unused. UniMatch V2: 0.95."
    )
    unlabelled_weight: float = Field(1.0, ge=0, description="L = (L_x + weight L_u) / 2.")
    unlabelled_loss: PseudoLossKind = Field(
        "ce_dice", description="ce: UniMatch V2. dice: UniMatch V1 for medical images."
    )
    ramp_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Share of the run over which the unlabelled weight rises; 0: UniMatch V2, "
        "which starts from a pretrained encoder.",
    )
    dropout_share: float = Field(
        0.5, ge=0, le=1, description="Share of pairs that get complementary channel dropout."
    )


class SssConfig(Config):
    """What `sss` adds to its UniMatch V2 base (whose settings stay in `unimatch_v2`)."""

    feature_perturbation: Literal["dfe", "comp_dropout", "both", "none"] = Field(
        "dfe", description="Where UniMatch V2 has complementary dropout."
    )
    dfe_levels: tuple[int, ...] = Field(
        (-1, -2, -3), min_length=1, description="Levels of the feature list; -1 is the coarsest."
    )
    dfe_width: int = Field(64, ge=8, le=512, description="Working channels (256 in the paper).")
    mask_weight: float = Field(0.5, ge=0, description="Largest weight of the SAM-2 mask term.")
    mask_schedule: MaskWeightKind = Field("falling", description="falling: SemiSAM.")
    mask_loss: MaskLossKind = Field("dice", description="mse: SemiSAM's form.")
    mask_min_predicted_iou: float = Field(
        0.5, ge=0, le=1, description="Below it SAM-2's mask of a class on a slice is unused."
    )
    mask_min_object_score: float = Field(
        0.0, description="Logit; below it SAM-2 says that the object is not on the slice."
    )
