"""What every method is: networks, and one step from a batch to named loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from sssflow.networks.base import SegmentationNet
from sssflow.sam.promptable import Generalist
from sssflow.training.clips import ClipPlan
from sssflow.training.config import AugmentationConfig, TrainConfig
from sssflow.training.data import Batch, LabelledBatch
from sssflow.training.ema import ema_ratio, make_teacher, update_teacher
from sssflow.training.methods.streams import WeakView
from sssflow.training.views import chosen, strong_view, weak_geometry

_AVERAGE_LAG = 10.0
"""Look-back of an average kept for evaluation: the last tenth of the steps, see `ema_ratio`."""


@dataclass(frozen=True)
class LossTerms:
    """Weighted terms of one step; the loss is their sum.

    Attributes:
        terms: Name to scalar tensor, the weight already applied.
        facts: Name to detached scalar, for the log only.
        preview: Name to detached (b,h,w) pictures: images in their own range, labels as integers.
        beside: Like `terms`, of networks trained beside the student, which they leave alone.
    """

    terms: dict[str, Tensor]
    facts: dict[str, Tensor] = field(default_factory=dict)
    preview: dict[str, Tensor] = field(default_factory=dict)
    beside: dict[str, Tensor] = field(default_factory=dict)

    @property
    def all_terms(self) -> dict[str, Tensor]:
        """The student's terms and those beside."""
        return self.terms | self.beside

    @property
    def total(self) -> Tensor:
        """Sum of all terms."""
        return torch.stack(list(self.all_terms.values())).sum()

    def __or__(self, other: LossTerms) -> LossTerms:
        """Both together; where a name is in both, `other`'s."""
        return LossTerms(
            self.terms | other.terms,
            self.facts | other.facts,
            self.preview | other.preview,
            self.beside | other.beside,
        )


@dataclass(frozen=True)
class SeenUnlabelled:
    """What the student and its target say about one weak view: all that a plug-in term needs.

    Attributes:
        weak: The view. Points or boxes made from the two below lie in its frame.
        logits_bkhw: The student's logits, with a gradient.
        target_bkhw: Probabilities without one: the teacher's, or the student's own if it has none.
    """

    weak: WeakView
    logits_bkhw: Tensor
    target_bkhw: Tensor


class Method(ABC):
    """A way of training. Subclasses are built from (student, config) and own all their networks.

    Attributes:
        name: As in the configuration.
        needs_unlabelled: Whether the step reads the unlabelled stream.
        needs_masks: Whether it reads SAM-2's masks.
        needs_generalist: Whether its step asks a frozen promptable model.
        generalist: That model, set by the stage; not among the modules.
        dimensions: Of the students it can train: slices (2), patches of volumes (3).
        batch_multiple: Every part of a batch must be a multiple of it.
        clips: What it reads instead of single slices; None: slices, as `batch_*` says.
        modules: Everything with weights: "student", for most methods "teacher", and extras.
        trained_apart: Names of the modules that have an optimiser in `own_optimisers`.
        kept_apart: Names of the modules that are each process's own where several train; their
            state has no parameters.
        own_optimisers: Name to optimiser of a module that the run's optimiser does not train. The
            loop steps and saves them with it; their learning rate is the method's affair.
    """

    name: str
    needs_unlabelled: bool = True
    needs_masks: bool = False
    needs_generalist: bool = False
    generalist: Generalist | None = None
    dimensions: frozenset[int] = frozenset({2, 3})
    batch_multiple: int = 1
    clips: ClipPlan | None = None
    ema_decay: float = 0.0
    ema_lag: float = 1.0
    trained_apart: frozenset[str] = frozenset()
    kept_apart: frozenset[str] = frozenset()

    def __init__(self, student: SegmentationNet, config: TrainConfig) -> None:
        self.config = config
        self.own_optimisers: dict[str, torch.optim.Optimizer] = {}
        self.modules = nn.ModuleDict({"student": student})

    @abstractmethod
    def step(self, batch: Batch, step: int, generator: Generator) -> LossTerms:
        """Loss terms of one batch; draws every random number from `generator` (on its device)."""

    def plug_in(self, seen: SeenUnlabelled, step: int, generator: Generator) -> LossTerms:
        """Terms that a subclass adds to a method; none here.

        mean_teacher, ua_mt and dan call it once per step with their unlabelled view.
        """
        return LossTerms({})

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every reader of this run's figures must be told; goes with record and model."""
        return ()

    @property
    def student(self) -> SegmentationNet:
        """The network that is trained."""
        return self.modules["student"]  # type: ignore[return-value]

    @property
    def teacher(self) -> SegmentationNet | None:
        """Its moving average; None if the method has none."""
        if "teacher" not in self.modules:
            return None
        return self.modules["teacher"]  # type: ignore[return-value]

    @property
    def average(self) -> SegmentationNet | None:
        """The average that can be measured: the teacher, or a copy kept for that alone."""
        if "average" not in self.modules:
            return self.teacher
        return self.modules["average"]  # type: ignore[return-value]

    def keep_average(self, decay: float) -> None:
        """Average the student from here on, where no teacher does; no loss reads the copy."""
        if self.teacher is None:
            self.ema_decay, self.ema_lag = decay, _AVERAGE_LAG
            self.modules["average"] = make_teacher(self.student)

    def trainable(self) -> Iterator[nn.Parameter]:
        """Parameters for the run's optimiser: all but the teacher's and those trained apart."""
        return (
            parameter
            for name, module in self.modules.items()
            if name not in self.trained_apart
            for parameter in module.parameters()
            if parameter.requires_grad
        )

    def train_mode(self) -> None:
        """Students and extras in training mode, the teacher in evaluation mode."""
        self.modules.train()
        if self.average is not None:
            self.average.eval()

    def after_update(self, step: int) -> None:
        """Move the teacher, or the copy for evaluation, after the optimiser's step `step`."""
        if self.average is not None:
            ratio = ema_ratio(step, self.ema_decay, self.ema_lag)
            update_teacher(self.average, self.student, ratio)


def labelled_view(
    batch: LabelledBatch, config: AugmentationConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Weak geometry on image and label, strong intensities on a share of the samples."""
    count, _, *sides = batch.image_bchw.shape
    geometry = weak_geometry((count, *sides), config.weak, generator)
    image = geometry.image(batch.image_bchw)
    image = some_strong(image, config, generator)
    return image, geometry.label(batch.label_bhw)


def some_strong(image_bchw: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    """Strong intensities on the share of the samples that labelled ones have."""
    strong = chosen(len(image_bchw), config.labelled_strong_probability, generator)
    strong = strong.view(-1, *[1] * (image_bchw.dim() - 1))
    return torch.where(strong, strong_view(image_bchw, config.strong, generator), image_bchw)
