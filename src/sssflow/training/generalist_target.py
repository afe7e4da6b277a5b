"""From a specialist's prediction to a frozen generalist's masks: what SemiSAM trains towards.

Letters: b samples, k classes, f foreground classes, n objects asked for; spatial axes follow, two
or three of them ("hw" stands for both).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sssflow.prompts.reliable_points import ReliablePrompt, accepted_area, reliable_prompt
from sssflow.sam.promptable import Generalist, Region
from sssflow.training.losses import mask_target
from sssflow.training.semisam_config import GeneralistPrompts, SemiSamConfig

_SURE_LOGIT = 6.0


@dataclass(frozen=True)
class Specialist:
    """What the specialist says about a batch, without gradient.

    Attributes:
        probability_bkhw: Its softmax.
        reliable_bhw: Where its uncertainty is below the limit.
    """

    probability_bkhw: Tensor
    reliable_bhw: Tensor


@dataclass(frozen=True)
class Target:
    """The generalist's masks of a batch, and how they came about.

    Attributes:
        mask_bfhw: Foreground distribution; 0 where nothing was asked or believed.
        weight_bfhw: Trust in each class at each place, 0 to 1.
        prompted_bf: Which classes were asked for.
        accepted_bf: Which answers passed the guards.
        agreement: Mean Dice between accepted answers and the specialist; NaN without any.
        area_ratio: Mean of answered over predicted area, before the guards; NaN without any.
    """

    mask_bfhw: Tensor
    weight_bfhw: Tensor
    prompted_bf: Tensor
    accepted_bf: Tensor
    agreement: Tensor
    area_ratio: Tensor

    @property
    def hard_bhw(self) -> Tensor:
        """Labels for a picture: the strongest accepted class where it beats the background."""
        best, index = torch.where(self.weight_bfhw > 0, self.mask_bfhw, 0).max(1)
        return torch.where(best > 0.5, index + 1, 0)


@dataclass(frozen=True)
class _Asked:
    """Objects that are worth a prompt: (sample, class) pairs, each with `repeats` regions."""

    pairs: list[tuple[int, int]]
    regions: list[Region]


def ask(
    generalist: Generalist,
    image: Tensor,
    specialist: Specialist,
    settings: SemiSamConfig,
    rng: np.random.Generator,
) -> Target:
    """Prompt the generalist with every object that the specialist is sure of.

    A class that the specialist does not see in a sample is not prompted there, and what the
    generalist answers is believed only if its IoU estimate and its area pass the guards; in both
    cases the class has weight 0 in that sample and is pushed in neither direction.
    """
    asked = regions_of(specialist, settings, rng)
    logits, iou = generalist.answer(image, asked.regions)
    count, classes = specialist.probability_bkhw.shape[:2]
    shape = (count, classes - 1, *image.shape[2:])
    probability = image.new_zeros(shape, dtype=torch.float32)
    weight = torch.zeros_like(probability)
    prompted = torch.zeros(shape[:2], dtype=torch.bool)
    accepted = torch.zeros(shape[:2], dtype=torch.bool)
    predicted = specialist.probability_bkhw.argmax(1)
    repeats = settings.draws
    ratios, agreements = [], []
    for i, (sample, label) in enumerate(asked.pairs):
        own = slice(i * repeats, (i + 1) * repeats)
        mean = logits[own].float().sigmoid().mean(0)
        found, wanted = mean > 0.5, predicted[sample] == label
        areas = int(found.sum()), int(wanted.sum())
        estimate = float(iou[own].mean())
        at = (sample, label - 1)
        prompted[at] = True
        ratios.append(areas[0] / areas[1])
        if estimate >= settings.min_predicted_iou and accepted_area(*areas, settings.area_ratio):
            accepted[at] = True
            probability[at] = mean
            weight[at] = estimate * (certainty(mean) if settings.prompts == "unc" else 1.0)
            agreements.append(2 * int((found & wanted).sum()) / sum(areas))
    return Target(
        mask_bfhw=mask_target(probability),
        weight_bfhw=weight,
        prompted_bf=prompted,
        accepted_bf=accepted,
        agreement=torch.tensor(np.mean(agreements) if agreements else math.nan),
        area_ratio=torch.tensor(np.mean(ratios) if ratios else math.nan),
    )


def regions_of(specialist: Specialist, settings: SemiSamConfig, rng: np.random.Generator) -> _Asked:
    """Prompts of all objects of a batch, `settings.draws` in a row for each."""
    probability = specialist.probability_bkhw.float().cpu().numpy()
    reliable = specialist.reliable_bhw.cpu().numpy()
    predicted = probability.argmax(1)
    asked = _Asked([], [])
    for sample in range(len(probability)):
        for label in np.unique(predicted[sample]).tolist():
            if label == 0:
                continue
            drawn = _draws(predicted[sample] == label, reliable[sample], settings, rng)
            if drawn:
                asked.pairs.append((sample, label))
                rough = _logits(probability[sample, label])
                asked.regions.extend(_region(sample, p, rough, settings.prompts) for p in drawn)
    return asked


def certainty(probability: Tensor) -> Tensor:
    """1 - u / ln 2 with u the entropy of a probability of the foreground: 1 at 0 and 1, 0 at 1/2.

    Of a mean over repeated prompting it is the confidence of SemiSAM+'s regularisation: places
    where the generalist's answer depends on which points were drawn count little.
    """
    p = probability.clamp(1e-6, 1 - 1e-6)
    return 1 + (p * p.log2() + (1 - p) * (1 - p).log2())


def _draws(
    predicted: NDArray[np.bool_],
    reliable: NDArray[np.bool_],
    settings: SemiSamConfig,
    rng: np.random.Generator,
) -> list[ReliablePrompt]:
    """Either `draws` prompts or none: whether there is one does not depend on what is drawn."""
    first = reliable_prompt(predicted, reliable, settings.points, rng)
    if first is None:
        return []
    rest = (
        reliable_prompt(predicted, reliable, settings.points, rng)
        for _ in range(settings.draws - 1)
    )
    return [first, *(prompt for prompt in rest if prompt is not None)]


def _region(
    sample: int, prompt: ReliablePrompt, rough: NDArray[np.float32], kind: GeneralistPrompts
) -> Region:
    clicks = kind in ("point", "unc")
    return Region(
        sample,
        points_pd=prompt.points_pd if clicks else prompt.points_pd[:0],
        labels_p=prompt.labels_p if clicks else prompt.labels_p[:0],
        support=prompt.support,
        box_2d=prompt.box_2d if kind == "box" else None,
        margin_px=prompt.margin_px if kind == "box" else 0,
        rough=rough if kind == "mask" else None,
    )


def _logits(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of a probability, within what a mask prompt is trained with."""
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    logits = np.log(clipped / (1 - clipped))
    bounded: NDArray[np.float32] = np.clip(logits, -_SURE_LOGIT, _SURE_LOGIT).astype(np.float32)
    return bounded


def class_facts(names: str, flags_bf: Tensor) -> dict[str, Tensor]:
    """Share of the samples with each class, by name."""
    shares: Sequence[Tensor] = list(flags_bf.float().mean(0))
    return {f"{names}/{label}": share for label, share in enumerate(shares, start=1)}
