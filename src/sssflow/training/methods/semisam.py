"""SemiSAM: a specialist prompts a frozen generalist, whose masks are one more target.

Sources: SemiSAM (arXiv 2312.06316) for prompts from reliable regions and the falling weight;
SemiSAM+ (MedIA 106 (2025) 103733) for the specialists Mean Teacher, UA-MT and DAN and for
confidence-aware regularisation. Where the released code differs from the papers, the papers count.
"""

from __future__ import annotations

from typing import Self, cast

import numpy as np
import torch
from torch import Generator, Tensor

from sssflow.errors import UsageError
from sssflow.networks.base import SegmentationNet
from sssflow.sam.promptable import Generalist
from sssflow.training.config import TrainConfig
from sssflow.training.generalist_target import Specialist, ask, class_facts
from sssflow.training.losses import mask_loss, one_hot_bkhw
from sssflow.training.methods.base import LossTerms, Method, SeenUnlabelled
from sssflow.training.methods.dan import Dan
from sssflow.training.methods.mean_teacher import MeanTeacher
from sssflow.training.methods.ua_mt import UaMt
from sssflow.training.oracle import WARNING
from sssflow.training.ramps import mask_weight, rising
from sssflow.training.uncertainty import entropy, entropy_limit, monte_carlo


class SemiSam(Method):
    """L = L_base + v(t) * L_sam, v falling; L_sam between the student and the generalist's masks.

    Built as the subclass on the base that `semisam.base` names. The generalist comes from outside
    (`generalist`); it is in no module list, so it is neither trained nor saved.
    """

    name = "semisam"
    needs_generalist = True

    def __new__(cls, student: SegmentationNet, config: TrainConfig) -> Self:
        """An instance of the subclass on `semisam.base`."""
        made: object = object.__new__(_BASES[config.semisam.base])
        return cast(Self, made)

    @property
    def warnings(self) -> tuple[str, ...]:
        """See `Method.warnings`."""
        return (WARNING,) if self.config.semisam.preset == "oracle_prompts" else ()

    def plug_in(self, seen: SeenUnlabelled, step: int, generator: Generator) -> LossTerms:
        """See `Method.plug_in`."""
        settings = self.config.semisam
        specialist = self._specialist(seen, step, generator)
        device = generator.device
        seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
        image = seen.weak.image_bchw
        target = ask(self._asked(), image, specialist, settings, np.random.default_rng(seed))
        loss = mask_loss(seen.logits_bkhw, target.mask_bfhw, target.weight_bfhw, kind=settings.loss)
        weight = settings.weight * mask_weight(settings.schedule, step, self.config.steps)
        return LossTerms(
            {"semisam": weight * loss},
            facts={
                "semisam_weight": torch.tensor(weight),
                "reliable_share": specialist.reliable_bhw.float().mean(),
                "generalist_agreement": target.agreement,
                "generalist_area_ratio": target.area_ratio,
                **class_facts("prompted", target.prompted_bf),
                **class_facts("accepted", target.accepted_bf),
            },
            preview={"generalist": target.hard_bhw},
        )

    def _specialist(self, seen: SeenUnlabelled, step: int, generator: Generator) -> Specialist:
        """Mean prediction of the teacher (or the student, where there is none) and its reliability.

        With `oracle_prompts` the truth takes the place of both.
        """
        settings = self.config.semisam
        classes = seen.target_bkhw.shape[1]
        if settings.preset == "oracle_prompts":
            truth = self._leaked(seen)
            return Specialist(
                one_hot_bkhw(truth, classes), torch.ones_like(truth, dtype=torch.bool)
            )
        net = self.student if self.teacher is None else self.teacher
        training = net.training
        net.eval()
        mean = monte_carlo(
            net,
            seen.weak.image_bchw,
            passes=settings.passes,
            noise_std=settings.noise_std,
            generator=generator,
        )
        net.train(training)
        low, high = settings.entropy_share_start, settings.entropy_share_end
        share = low + (high - low) * rising(step, self.config.steps)
        return Specialist(mean, entropy(mean) < entropy_limit(classes, share))

    def _asked(self) -> Generalist:
        if self.generalist is None:
            raise UsageError(
                "The method semisam asks a generalist, and none was given.",
                expected="SAM-2 or SAM-Med3D, built from the section `generalist`",
                action="Train by `sssflow train` or the component, which build it.",
            )
        return self.generalist

    def _leaked(self, seen: SeenUnlabelled) -> Tensor:
        if seen.weak.leaked_label_bhw is None:
            raise UsageError(
                "oracle_prompts needs the true labels of the unlabelled cases.",
                where="semisam.preset",
                expected="a dataset in which these cases are labelled (--leak-labels-from)",
                action="Use specialist_prompts, unless you want the leaking bound.",
            )
        return seen.weak.leaked_label_bhw.long()


class SemiSamMeanTeacher(SemiSam, MeanTeacher):
    """On Mean Teacher."""


class SemiSamUaMt(SemiSam, UaMt):
    """On UA-MT."""


class SemiSamDan(SemiSam, Dan):
    """On DAN, whose student is its own specialist."""


_BASES: dict[str, type[SemiSam]] = {
    "mean_teacher": SemiSamMeanTeacher,
    "ua_mt": SemiSamUaMt,
    "dan": SemiSamDan,
}
