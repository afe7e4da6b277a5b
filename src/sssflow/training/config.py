"""Settings of a training run; one file serves every method, so that runs differ in one word.

What belongs to one method alone stands in `method_config.py`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sssflow.configuration import Config
from sssflow.contracts.model import Preprocessing
from sssflow.networks.config import NetworkConfig
from sssflow.training.in_loop_config import SssInLoopConfig
from sssflow.training.method_config import (
    BcpConfig,
    CpsConfig,
    DanConfig,
    FixMatchConfig,
    MeanTeacherConfig,
    MethodName,
    SssConfig,
    UaMtConfig,
    UniMatchConfig,
    UniMatchV2Config,
)
from sssflow.training.ramps import ScheduleKind
from sssflow.training.semisam_config import SemiSamConfig


class OptimiserConfig(Config):
    """Optimiser and learning rate."""

    kind: Literal["sgd", "adamw"] = Field(
        "adamw", description="sgd: with Nesterov off, as SSL4MIS."
    )
    learning_rate: float = Field(
        5e-3, gt=0, le=1, description="After the warm-up (SSL4MIS: sgd 0.01)."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only.")
    weight_decay: float = Field(1e-2, ge=0, le=1, description="SSL4MIS: sgd 1e-4.")
    schedule: ScheduleKind = Field("poly", description="Closed form of the step.")
    poly_power: float = Field(0.9, gt=0, le=10, description="poly only.")
    drop_every: int = Field(2500, ge=1, description="step only: steps between falls to a tenth.")
    warmup_steps: int = Field(20, ge=0, description="Linear rise at the start.")
    floor: float = Field(0.0, ge=0, le=1, description="Smallest factor of the learning rate.")
    clip_norm: float = Field(0.0, ge=0, description="Largest gradient norm; 0 switches it off.")


class WeakConfig(Config):
    """Geometry shared by every view of a sample (image, label and masks alike).

    Each probability is per sample; 0 switches the transform off.
    """

    rule: Literal["independent", "either"] = Field(
        "independent",
        description="independent: every transform by its own probability. either: SSL4MIS's rule, "
        "2-D: a quarter turn with a flip along one axis (rot90_probability), else the affine map "
        "(affine_probability), never both.",
    )
    flip_probability: float = Field(0.5, ge=0, le=1, description="Each axis by itself.")
    rot90_probability: float = Field(0.5, ge=0, le=1, description="A random quarter turn.")
    affine_probability: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Rotation, scale and shear; the shift is drawn by itself, with the same.",
    )
    rotation_deg: float = Field(30.0, ge=0, le=180, description="Largest angle, both ways.")
    scale: float = Field(0.25, ge=0, lt=1, description="Zoom from 1/(1+scale) to 1+scale.")
    shear: float = Field(0.1, ge=0, lt=1, description="Largest shear, both ways.")
    translation: float = Field(0.08, ge=0, lt=1, description="Largest shift, share of the side.")
    elastic_probability: float = Field(0.2, ge=0, le=1, description="Smooth random displacement.")
    elastic_share: float = Field(
        1 / 64,
        ge=0,
        le=0.25,
        description="Standard deviation of displacement, share of the side; with 6 nodes 0.02 "
        "folds no image and 0.06 nearly every one.",
    )
    elastic_nodes: int = Field(6, ge=2, le=64, description="Control points along each side.")


class StrongConfig(Config):
    """Intensity changes of strong views, then cut-outs. Each probability is per sample."""

    jitter_probability: float = Field(0.8, ge=0, le=1, description="Brightness and contrast.")
    brightness: float = Field(0.5, ge=0, le=1, description="Factor from 1-b to 1+b.")
    contrast: float = Field(0.5, ge=0, le=1, description="Blend with the mean, 1-c to 1+c.")
    gamma_probability: float = Field(0.3, ge=0, le=1, description="Power of the intensity.")
    gamma: float = Field(0.5, ge=0, le=3, description="Exponent from 1/(1+gamma) to 1+gamma.")
    blur_probability: float = Field(0.5, ge=0, le=1, description="Gaussian blur.")
    blur_sigma_px: float = Field(1.5, ge=0.1, le=4, description="Largest standard deviation.")
    noise_probability: float = Field(0.3, ge=0, le=1, description="Gaussian noise.")
    noise_std: float = Field(0.05, ge=0, le=1, description="Largest standard deviation.")
    cutout_probability: float = Field(0.0, ge=0, le=1, description="Erase one box.")


class CutMixConfig(Config):
    """CutMix between strong views (UniMatch V2's values); the partner is the reversed batch."""

    probability: float = Field(0.5, ge=0, le=1, description="Per sample.")
    area_low: float = Field(0.02, gt=0, le=1, description="Smallest share of the image.")
    area_high: float = Field(0.4, gt=0, le=1, description="Largest share of the image.")
    aspect: float = Field(3.3, ge=1, le=10, description="Side ratio from 1/aspect to aspect.")

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.area_low > self.area_high:
            raise ValueError("area_low must not exceed area_high")
        return self


class AugmentationConfig(Config):
    """Views of both streams."""

    weak: WeakConfig = Field(WeakConfig(), description="Geometry of every view.")
    strong: StrongConfig = Field(StrongConfig(), description="Intensity of the strong views.")
    cutmix: CutMixConfig = Field(CutMixConfig(), description="Boxes pasted between strong views.")
    class_paste_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of strong views into which a class of the partner's confident pseudo "
        "label is pasted too, pixel by pixel; rare classes are drawn more often.",
    )
    labelled_strong_probability: float = Field(
        0.5, ge=0, le=1, description="Share of labelled samples that also get strong intensities."
    )


class TrainConfig(Config):
    """One training run."""

    method: MethodName = Field("supervised", description="The other methods' sections are unused.")
    network: NetworkConfig = Field(NetworkConfig(), description="The student.")
    preprocessing: Preprocessing = Field(
        Preprocessing(), description="From stored voxels to network input; kept with the model."
    )
    steps: int = Field(3000, ge=1, description="Optimiser steps.")
    batch_labelled: int = Field(8, ge=1, description="Labelled slices or patches per step.")
    batch_unlabelled: int = Field(8, ge=1, description="Unlabelled slices or patches per step.")
    foreground_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of labelled samples that are made to hold a class drawn first, each "
        "class alike, so that rare ones come as often. 2-D: a slice that shows it; 3-D: a patch "
        "centred on a voxel of it (nnU-Net: 0.33; the LA papers: 0).",
    )
    optimiser: OptimiserConfig = Field(OptimiserConfig(), description="Optimiser.")
    augmentation: AugmentationConfig = Field(AugmentationConfig(), description="Views.")
    mean_teacher: MeanTeacherConfig = Field(MeanTeacherConfig(), description="mean_teacher only.")
    ua_mt: UaMtConfig = Field(UaMtConfig(), description="ua_mt only.")
    cps: CpsConfig = Field(CpsConfig(), description="cps only.")
    fixmatch: FixMatchConfig = Field(FixMatchConfig(), description="fixmatch only.")
    unimatch: UniMatchConfig = Field(UniMatchConfig(), description="unimatch only.")
    bcp: BcpConfig = Field(BcpConfig(), description="bcp only.")
    dan: DanConfig = Field(DanConfig(), description="dan only.")
    unimatch_v2: UniMatchV2Config = Field(
        UniMatchV2Config(), description="unimatch_v2 and the base of sss."
    )
    semisam: SemiSamConfig = Field(SemiSamConfig(), description="semisam only.")
    sss: SssConfig = Field(SssConfig(), description="sss only.")
    sss_in_loop: SssInLoopConfig = Field(
        default_factory=SssInLoopConfig, description="sss_in_loop only."
    )
    seed: int = Field(1337, ge=0, le=2**31 - 1, description="Of weights, order and views.")
    evaluate: Literal["auto", "ema", "student"] = Field(
        "auto", description="Which network is measured and saved; auto: ema where there is one."
    )
    ema_evaluation: bool = Field(
        False,
        description="Average the weights for evaluation also where the method has no teacher; "
        "training itself is as without.",
    )
    ema_evaluation_decay: float = Field(
        0.99, ge=0, lt=1, description="Of that average; ratio min(t/(t+10), decay)."
    )
    selection: Literal["validation", "last"] = Field(
        "validation",
        description="validation: keep the step with the best mean foreground Dice on the "
        "validation cases; last: keep the last step, as papers without a validation set do.",
    )
    eval_every: int = Field(200, ge=1, description="Steps between validations.")
    checkpoint_every_steps: int = Field(1000, ge=1, description="Steps between checkpoints.")
    checkpoint_every_s: float = Field(300.0, gt=0, description="Or seconds, whichever is first.")
    keep_last: int = Field(2, ge=1, le=100, description="Checkpoints kept.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if present.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the forward pass; auto: bfloat16 where the device computes in it "
        "(a GPU from Ampere on, a processor with AVX512-BF16 or AMX), else float32.",
    )
    compile: bool = Field(
        False,
        description="Compile the networks for the training steps (torch.compile): minutes at the "
        "start for faster steps. Needs a C compiler; without one the networks run as written.",
    )
    threads: int = Field(0, ge=0, le=256, description="CPU threads of torch; 0: torch's choice.")
    processes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Processes that share every batch, one per GPU (`sssflow train --gpus`).",
    )
    memory_gib: float = Field(
        8.0,
        gt=0,
        description="Largest size of one stream, or of all validation volumes, held in memory; "
        "beyond it: refused.",
    )

    @property
    def reads_masks(self) -> bool:
        """Whether the method can learn from masks that SAM-2 made before the training."""
        return self.method == "sss"

    @model_validator(mode="after")
    def _sam2_sees_grey_values(self) -> Self:
        if self.network.name == "sam2" and self.preprocessing.intensity.kind == "zscore":
            raise ValueError(
                "preprocessing.intensity must give values of 0 to 1 for network sam2, which "
                "normalises them as photographs: percentile, minmax or window"
            )
        return self

    @model_validator(mode="after")
    def _size_fits_the_network(self) -> Self:
        stride, patch = self.network.stride, self.preprocessing.patch
        if (self.network.dimensions == 3) != (patch is not None):
            raise ValueError(
                "preprocessing.patch and network.dimensions=3 belong together: give both "
                "(a 3-D network such as vnet) or neither"
            )
        key, sides = (
            ("size_hw", self.preprocessing.size_hw)
            if patch is None
            else ("patch.size_shw", patch.size_shw)
        )
        if any(side % stride for side in sides) or min(sides) < 1:
            nearest = "x".join(str(max(1, -(-side // stride)) * stride) for side in sides)
            raise ValueError(
                f"preprocessing.{key} {'x'.join(map(str, sides))} must be multiples of {stride}, "
                f"the stride of {self.network.name} with these settings; the next is {nearest}"
            )
        if patch is not None and max(sides) == stride:
            raise ValueError(
                f"preprocessing.patch.size_shw leaves one voxel at the coarsest level, which "
                f"cannot be normalised: make a side {2 * stride}, or network.levels smaller"
            )
        return self
