"""Settings of the SAM-2 room: inference over a dataset, and pre-training of nano SAM-2."""

from __future__ import annotations

import hashlib
from typing import Literal, Self

from pydantic import Field, model_validator

from sssflow.configuration import Config
from sssflow.contracts.model import IntensityRule
from sssflow.serving.config import ClientConfig

SamSize = Literal["nano", "tiny", "small", "base_plus", "large"]
SamVersion = Literal["2.0", "2.1"]


class PropagationConfig(Config):
    """How masks travel from the prompted slices through the volume."""

    mode: Literal["coarse", "memory", "chain", "prompted_only"] = Field(
        "coarse",
        description="coarse: every slice within reach is prompted by the coarse mask too, and "
        "none depends on another (memory where the prompts come without coarse masks); "
        "memory: SAM-2's memory carries masks to all slices within reach, in both directions; "
        "chain: box and deepest point of one mask prompt the next slice; "
        "prompted_only: every prompted slice alone, nothing elsewhere.",
    )
    min_area_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="chain, beyond the prompted slices: a mask smaller than this share of the one "
        "before counts as absent.",
    )
    max_distance: int | None = Field(
        None,
        ge=0,
        description="Slices beyond the first and the last prompted slice, on each side; null: to "
        "the ends of the volume (nano with memory or chain: 1 is better).",
    )
    presence_logit: float = Field(
        0.0, description="Object score (logit) that a slice must exceed, else its mask is empty."
    )
    patience: int = Field(
        2, ge=1, description="Absent slices in a row after which a direction is given up."
    )


class OnnxConfig(Config):
    """Settings of the backend `onnx`."""

    bundle: str | None = Field(
        None,
        description="Folder that `sssflow export sam2` wrote; for the backend triton, which reads "
        "its bundle.json alone, an s3:// address too.",
    )
    threads: int = Field(0, ge=0, description="Threads of ONNX Runtime; 0: one per core.")
    spinning: bool = Field(
        False,
        description="Let idle threads spin: a little faster alone, much slower beside others.",
    )


class SamConfig(Config):
    """Settings of the infer stage."""

    size: SamSize = Field("nano", description="nano, or one of the four official sizes.")
    version: SamVersion = Field("2.1", description="Version of the official model; nano is 2.1.")
    weights: str | None = Field(
        None,
        description="Checkpoint (.pt) or safetensors file; null: the packaged weights (nano only).",
    )
    input_size: int = Field(
        192, ge=32, le=2048, description="Side of SAM-2's square input, a multiple of 32."
    )
    roi: Literal["full", "prompts"] = Field(
        "prompts", description="prompts: crop to the prompts of the case first; full: whole slice."
    )
    roi_margin: float = Field(
        0.35, ge=0, le=4, description="Margin of the crop, as a share of the longer box side."
    )
    roi_min_px: int = Field(32, ge=8, description="Shortest side of the crop in pixels.")
    use_points: bool = Field(True, description="Use the points of the prompts beside the boxes.")
    intensity: IntensityRule | None = Field(
        None,
        description="null: percentile for MR, brain window (0 to 80 HU) for CT. `adapt` shows "
        "SAM-2 the labelled cases by the same rule. Grey values must lie in 0 to 1: not zscore, "
        "and none only where the scans do.",
    )
    propagation: PropagationConfig = Field(
        PropagationConfig(), description="How masks travel through the volume."
    )
    backend: Literal["torch", "onnx", "triton"] = Field("torch", description="What runs SAM-2.")
    onnx: OnnxConfig = Field(
        OnnxConfig(), description="Settings of the backend onnx; triton reads the bundle too."
    )
    triton: ClientConfig = Field(
        ClientConfig(), description="Settings of the backend triton: address and deadlines."
    )
    device: str = Field(
        "auto", description="auto (the GPU where there is one), cpu, cuda or cuda:<n>."
    )
    encode_batch: int = Field(8, ge=1, le=256, description="Slices encoded at once.")
    seed: int = Field(0, ge=0, description="Kept for the record; inference draws nothing.")

    @model_validator(mode="after")
    def _input_size_fits(self) -> Self:
        if self.input_size % 32:
            raise ValueError("input_size must be a multiple of 32")
        return self

    @model_validator(mode="after")
    def _intensity_gives_grey_values(self) -> Self:
        if self.intensity is not None and self.intensity.kind == "zscore":
            raise ValueError("intensity must give values of 0 to 1: percentile, minmax or window")
        return self


class GeneralistConfig(Config):
    """The frozen promptable model that `semisam` asks inside the training step."""

    kind: Literal["sam2", "sam_med3d"] = Field(
        "sam2", description="sam2: slices, and volumes as video; sam_med3d: volumes only."
    )
    size: SamSize = Field("nano", description="sam2: nano, or one of the four official sizes.")
    version: SamVersion = Field("2.1", description="sam2: version of the official model.")
    weights: str | None = Field(
        None, description="Checkpoint or safetensors file; null: the packaged weights (nano only)."
    )
    input_size: int = Field(
        128, ge=32, le=2048, description="sam2: side of the square input, a multiple of 32."
    )
    slices_cached: int = Field(
        0,
        ge=0,
        description="sam2: encoded slices that are kept. A slice is found again only if its view "
        "is the same to the bit: with the geometry of augmentation.weak switched off.",
    )
    prompt_freq: int = Field(
        2, ge=1, description="sam2, volumes: step between prompted slices of an object."
    )
    propagation: PropagationConfig = Field(
        PropagationConfig(mode="memory"),
        description="sam2, volumes: from the prompted slices to the others.",
    )

    @model_validator(mode="after")
    def _input_size_fits(self) -> Self:
        if self.input_size % 32:
            raise ValueError("input_size must be a multiple of 32")
        return self


class RefineConfig(Config):
    """A later part of the pre-training: from the stored weights of the one before."""

    steps: int = Field(1600, ge=1, description="Steps that the learning rate is planned for.")
    stop_after: int | None = Field(None, ge=1, description="Steps that are made; null: all.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak of AdamW's learning rate.")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear rise.")
    input_sizes: tuple[int, ...] = Field(
        (128, 128, 192), min_length=1, description="Sides of the input; one is drawn for each step."
    )
    clip_share: float = Field(0.3, ge=0, le=1, description="Share of the steps on clips.")
    hard_share: float = Field(
        0.6, ge=0, le=1, description="See `PretrainConfig.hard_share`, for this part."
    )
    grey_hints: bool = Field(False, description="See `PretrainConfig.grey_hints`.")
    track_best_of_three: bool = Field(True, description="See `PretrainConfig.track_best_of_three`.")


class PretrainConfig(Config):
    """Settings of the pre-training of nano SAM-2 on procedural shapes."""

    steps: int = Field(6000, ge=1, description="Steps that the learning rate is planned for.")
    stop_after: int | None = Field(
        1800, ge=1, description="Steps that are made; null: all that are planned."
    )
    refine: tuple[RefineConfig, ...] = Field(
        (
            RefineConfig(),
            RefineConfig(
                steps=1500,
                learning_rate=8e-4,
                clip_share=0.4,
                grey_hints=True,
                track_best_of_three=False,
            ),
        ),
        description="Later parts, each with a fresh optimiser and its own random numbers.",
    )
    grey_hints: bool = Field(
        False, description="Draw hints with the grey values of the slice, as inference does."
    )
    track_best_of_three: bool = Field(
        True,
        description="Remember the best of three masks on tracked slices, as the official sizes "
        "do; false: the single mask, as nano does in use.",
    )
    input_sizes: tuple[int, ...] = Field(
        (128, 128, 128, 192),
        min_length=1,
        description="Sides of the input; one is drawn for each step.",
    )
    images_per_step: int = Field(3, ge=1, description="Scenes of a still step.")
    objects_per_image: int = Field(5, ge=1, description="Prompted objects of each scene.")
    hard_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How much objects that fill little of their box (walls, crescents) are "
        "preferred when objects are picked: 0 not at all.",
    )
    clip_share: float = Field(
        0.25, ge=0, le=1, description="Share of the steps that train memory on clips."
    )
    clip_from: float = Field(
        0.3, ge=0, le=1, description="Share of the training before the first clip step."
    )
    clip_length: tuple[int, int] = Field((3, 5), description="Slices of a clip, shortest, longest.")
    clip_objects: int = Field(5, ge=1, description="Objects followed through each clip.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak of AdamW's learning rate.")
    warmup_steps: int = Field(200, ge=0, description="Steps of linear rise.")
    weight_decay: float = Field(0.02, ge=0, description="AdamW's decay of matrices.")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="Decay of the averaged weights.")
    clip_gradient: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    focal_weight: float = Field(20.0, ge=0, description="Weight of the focal term.")
    dice_weight: float = Field(1.0, ge=0, description="Weight of the Dice term.")
    iou_weight: float = Field(1.0, ge=0, description="Weight of the L1 term on predicted IoU.")
    score_weight: float = Field(1.0, ge=0, description="Weight of the object score term.")
    dataset_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of scenes from the labelled cases, if a dataset is given.",
    )
    start_from: str | None = Field(None, description="Weights to start from; null: random.")
    log_every: int = Field(100, ge=1, description="Steps between two log lines.")
    seed: int = Field(0, ge=0, description="Seed of weights and data.")
    threads: int = Field(1, ge=1, description="Threads of PyTorch; 1 gives equal bits each run.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        sizes = [*self.input_sizes, *(s for part in self.refine for s in part.input_sizes)]
        if any(size % 32 or size < 64 for size in sizes):
            raise ValueError("input_sizes must be multiples of 32, from 64")
        if not 2 <= self.clip_length[0] <= self.clip_length[1]:
            raise ValueError("clip_length must be (shortest, longest), from 2")
        return self


class AdaptConfig(Config):
    """Settings of the adaptation of nano SAM-2 to the labelled cases of a dataset."""

    steps: int = Field(300, ge=0, description="Optimiser steps; 0 leaves the weights as they are.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak of AdamW's learning rate.")
    dataset_share: float = Field(
        0.9, gt=0, le=1, description="Share of scenes from labelled cases; the rest are shapes."
    )
    clip_share: float = Field(
        0.0, ge=0, le=1, description="Share of steps on clips; for propagation.mode memory."
    )
    seed: int = Field(0, ge=0, description="Of scenes and prompts.")

    def digest_with(self, intensity: IntensityRule | None) -> str:
        """Digest of all settings that an adaptation reads; without a rule it is `digest()`."""
        if intensity is None:
            return self.digest()
        text = f"{self.digest()}\n{intensity.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()
