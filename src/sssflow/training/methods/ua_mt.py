"""UA-MT, uncertainty-aware Mean Teacher (Yu et al., MICCAI 2019; arXiv 1907.07034)."""

from __future__ import annotations

from torch import Generator

from sssflow.training.losses import consistency_loss
from sssflow.training.method_config import UaMtConfig
from sssflow.training.methods.base import LossTerms, SeenUnlabelled
from sssflow.training.methods.mean_teacher import MeanTeacher
from sssflow.training.ramps import rising
from sssflow.training.uncertainty import entropy, entropy_limit, monte_carlo


class UaMt(MeanTeacher):
    """Mean Teacher whose consistency counts only where the teacher is certain.

    u is the entropy of the teacher's mean softmax over T passes with dropout and noise;
    L_c = sum 1(u < H) |p_student - p_teacher|^2 / sum 1(u < H), mean over classes, with
    H = (3/4 + 1/4 ramp(t)) U_max. U_max = ln k is the largest possible entropy: the paper's ln 2
    for its two classes (SSL4MIS's 2-D line keeps ln 2 for ACDC's four).
    """

    name = "ua_mt"

    @property
    def settings(self) -> UaMtConfig:
        """This method's section."""
        return self.config.ua_mt

    def consistency(self, seen: SeenUnlabelled, step: int, generator: Generator) -> LossTerms:
        """See `MeanTeacher.consistency`."""
        mean = monte_carlo(
            self.ema,
            seen.weak.image_bchw,
            passes=self.settings.passes,
            noise_std=self.settings.noise_std,
            generator=generator,
        )
        certain = entropy(mean) < entropy_limit(mean.shape[1], self.entropy_share(step))
        loss = consistency_loss(seen.logits_bkhw, seen.target_bkhw, certain)
        return LossTerms(
            {"consistency": self.weight(step) * loss},
            facts={"certain_share": certain.float().mean()},
        )

    def entropy_share(self, step: int) -> float:
        """H as a share of U_max, rising over the whole run."""
        low, high = self.settings.entropy_share_start, self.settings.entropy_share_end
        return low + (high - low) * rising(step, self.config.steps)
