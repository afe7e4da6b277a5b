"""How good nano SAM-2 is on heart phantoms that it never saw.

    python benchmarks/nano_sam2.py [--patients 12] [--seed 7101] [--weights FILE] [--out FILE]

The phantoms are drawn here and never enter the pre-training, which draws its own shapes. Dice is
per volume and class, the interval is a bootstrap over patients. `coarse` masks are the truth made
worse (moved, smoothed by noise, slices lost), so that they are wrong in the way a weak network is;
PCSW turns them into prompts by the code of the prompts stage.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from sssflow.contracts.model import IntensityRule
from sssflow.contracts.prompts import CasePrompts, ObjectPrompts, SlicePrompt
from sssflow.ingest.phantoms.config import HeartConfig
from sssflow.ingest.phantoms.heart_anatomy import GROUPS
from sssflow.ingest.phantoms.hearts import draw_heart
from sssflow.prompts.config import PcswConfig, SimulateConfig
from sssflow.prompts.pcsw import select_prompts
from sssflow.prompts.simulate import simulate_object
from sssflow.sam.config import PropagationConfig, SamConfig
from sssflow.sam.geometry import OUTSIDE_LOGIT, Window
from sssflow.sam.promptable import Prompt
from sssflow.sam.propagate import case_window, segment_volume
from sssflow.sam.torch_backend import TorchPromptable, load_torch_promptable
from sssflow.volume.intensity import normalise

CLASSES = ("background", "RV", "MYO", "LV")
ALONE = PropagationConfig(mode="prompted_only")
Labels = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Case:
    """A phantom volume in [0, 1], its truth, and coarse masks made from it."""

    def __init__(self, patient: int, image: NDArray[np.generic], truth: Labels, seed: int) -> None:
        self.patient = patient
        self.image_shw = normalise(image, IntensityRule())
        self.truth_shw = truth
        self.coarse_shw = coarse_masks(truth, np.random.default_rng([seed, patient, 1]))


def draw_cases(patients: int, seed: int, difficulty: float) -> list[Case]:
    cases = []
    for index in range(patients):
        rng = np.random.default_rng([seed, index])
        scan = draw_heart(rng, GROUPS[index % len(GROUPS)], HeartConfig(), difficulty)
        cases += [Case(index, scan.images[m], scan.masks[m], seed) for m in ("ED", "ES")]
    return cases


def coarse_masks(truth_shw: Labels, rng: np.random.Generator) -> Labels:
    """Labels as a weak network gives them: displaced by smooth noise, with slices lost."""
    s, h, w = truth_shw.shape
    coarse = np.zeros_like(truth_shw)
    for i in range(s):
        knots = rng.normal(0, 3.0, (2, 6, 6))
        field = [ndimage.zoom(k, (h / 6, w / 6), order=1, mode="nearest") for k in knots]
        rows, columns = np.mgrid[:h, :w]
        at = [rows + field[0], columns + field[1]]
        coarse[i] = ndimage.map_coordinates(truth_shw[i], at, order=0, mode="nearest")
    for k in range(1, len(CLASSES)):
        for i in np.flatnonzero((coarse == k).any(axis=(1, 2))):
            if rng.uniform() < 0.15:
                coarse[i][coarse[i] == k] = 0
    return coarse


def true_prompts(case: Case, config: SimulateConfig, *, only_largest: bool = False) -> CasePrompts:
    rng = np.random.default_rng([case.patient, 2])
    found = [simulate_object(case.truth_shw == k, k, config, rng) for k in range(1, len(CLASSES))]
    objects = [item for item in found if item is not None]
    if only_largest:
        objects = [_only_largest(item, case) for item in objects]
    return CasePrompts(case_id="x", shape_shw=case.truth_shw.shape, objects=tuple(objects))


def _only_largest(item: ObjectPrompts, case: Case) -> ObjectPrompts:
    def area(prompt: SlicePrompt) -> int:
        return int((case.truth_shw[prompt.slice_index] == item.class_index).sum())

    return item.model_copy(update={"slices": (max(item.slices, key=area),)})


def pcsw_prompts(case: Case) -> CasePrompts:
    objects = select_prompts(case.coarse_shw, PcswConfig(), class_names=CLASSES)
    return CasePrompts(case_id="x", shape_shw=case.truth_shw.shape, objects=tuple(objects))


def labels_of(probability_kshw: NDArray[np.uint8]) -> Labels:
    background = 255 - probability_kshw.astype(np.int32).sum(axis=0)
    stacked = np.concatenate([background[None], probability_kshw.astype(np.int32)])
    return stacked.argmax(axis=0).astype(np.uint8)


def prompted(
    model: TorchPromptable, config: SamConfig, make: Callable[[Case], CasePrompts]
) -> Callable[[Case], Labels]:
    def segment(case: Case) -> Labels:
        result = segment_volume(model, case.image_shw, make(case), len(CLASSES), config)
        return labels_of(result.probability_kshw)

    return segment


def box_filled(case: Case) -> Labels:
    """What the boxes alone say: the yardstick that prompts must beat."""
    out = np.zeros_like(case.truth_shw)
    for item in true_prompts(case, SimulateConfig(prompt_freq=1)).objects:
        for p in item.slices:
            x0, y0, x1, y1 = (int(v) for v in p.box_xyxy_px)
            out[p.slice_index, y0 : y1 + 1, x0 : x1 + 1] = item.class_index
    return out


def refined(model: TorchPromptable, config: SamConfig) -> Callable[[Case], Labels]:
    """Coarse masks as mask prompts, slice by slice, no box and no point."""

    def segment(case: Case) -> Labels:
        s, h, w = case.truth_shw.shape
        window = case_window(pcsw_prompts(case), config)
        features = model.encode(case.image_shw, window)
        logits = np.full((len(CLASSES), s, h, w), OUTSIDE_LOGIT, np.float32)
        logits[0] = 0
        for k in range(1, len(CLASSES)):
            for i in np.flatnonzero((case.coarse_shw == k).any(axis=(1, 2))):
                low = _rough(case.coarse_shw[i] == k, window, model.input_size)
                answer = model.segment(features, int(i), [Prompt(mask_logits_yx=low)])[0]
                pasted = window.paste(torch.from_numpy(answer.logits_yx)[None, None], (h, w))
                logits[k, i] = pasted[0].numpy()
        return logits.argmax(axis=0).astype(np.uint8)

    return segment


def _rough(mask_hw: NDArray[np.bool_], window: Window, input_size: int) -> Floats:
    whole = torch.from_numpy(mask_hw.astype(np.float32))[None, None]
    return (window.crop(whole, input_size // 4)[0, 0].numpy() - 0.5) * 12


def dice(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    total = int(found.sum()) + int(true.sum())
    return 1.0 if total == 0 else 2 * int((found & true).sum()) / total


def interval(values: NDArray[np.float64], patients: NDArray[np.intp]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, resampling patients."""
    rng = np.random.default_rng(0)
    ids = np.unique(patients)
    means = np.array([values[patients == p].mean() for p in ids])
    drawn = means[rng.integers(0, len(ids), (2000, len(ids)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def settings(model: TorchPromptable, base: SamConfig) -> Mapping[str, Callable[[Case], Labels]]:
    alone = base.model_copy(update={"propagation": ALONE})
    chain = base.model_copy(update={"propagation": PropagationConfig(mode="chain", max_distance=1)})
    far = base.model_copy(
        update={"propagation": PropagationConfig(mode="chain", max_distance=None)}
    )
    every, second = SimulateConfig(prompt_freq=1), SimulateConfig(prompt_freq=2)
    boxes = SimulateConfig(prompt_freq=1, positive_points=0)
    points = SimulateConfig(prompt_freq=1, box=False)
    three = SimulateConfig(prompt_freq=1, box=False, positive_points=2, negative_points=1)
    return {
        "true box filled (no model)": box_filled,
        "true box + point, every slice": prompted(model, alone, lambda c: true_prompts(c, every)),
        "true box, every slice": prompted(model, alone, lambda c: true_prompts(c, boxes)),
        "1 true point, every slice": prompted(model, alone, lambda c: true_prompts(c, points)),
        "2 points in, 1 out, every slice": prompted(model, alone, lambda c: true_prompts(c, three)),
        "true box + point, every 2nd slice, chain": prompted(
            model, chain, lambda c: true_prompts(c, second)
        ),
        "true box + point, every 2nd slice, memory": prompted(
            model, base, lambda c: true_prompts(c, second)
        ),
        "true box + point, largest slice, chain to the ends": prompted(
            model, far, lambda c: true_prompts(c, every, only_largest=True)
        ),
        "coarse masks": lambda c: c.coarse_shw,
        "PCSW prompts of coarse masks, chain": prompted(model, chain, pcsw_prompts),
        "PCSW prompts of coarse masks, memory": prompted(model, base, pcsw_prompts),
        "coarse masks as mask prompts": refined(model, base),
    }


def measure(cases: list[Case], segment: Callable[[Case], Labels]) -> NDArray[np.float64]:
    """(cases, classes) Dice."""
    rows = []
    for case in cases:
        found = segment(case)
        rows.append([dice(found == k, case.truth_shw == k) for k in range(1, len(CLASSES))])
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=7101)
    parser.add_argument("--difficulty", type=float, default=0.5)
    parser.add_argument("--weights", default=None)
    parser.add_argument("--input-size", type=int, default=SamConfig().input_size)
    parser.add_argument("--margin", type=float, default=SamConfig().roi_margin)
    parser.add_argument("--roi", default="prompts")
    parser.add_argument("--only", default="", help="part of the names of the rows to run")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    base = SamConfig(
        propagation=PropagationConfig(mode="memory", max_distance=1),
        weights=options.weights,
        input_size=options.input_size,
        roi_margin=options.margin,
        roi=options.roi,
    )
    model = load_torch_promptable(base)
    cases = draw_cases(options.patients, options.seed, options.difficulty)
    patients = np.array([c.patient for c in cases])
    lines = ["| prompts | RV | MYO | LV | mean | 95 % interval | s per volume |", "|" + "---|" * 7]
    for name, segment in settings(model, base).items():
        if options.only not in name:
            continue
        started = time.perf_counter()
        scores = measure(cases, segment)
        seconds = (time.perf_counter() - started) / len(cases)
        low, high = interval(scores.mean(axis=1), patients)
        per_class = " | ".join(f"{v:.3f}" for v in scores.mean(axis=0))
        row = f"| {name} | {per_class} | {scores.mean():.3f} | {low:.3f} to {high:.3f} |"
        lines.append(f"{row} {seconds:.2f} |")
        print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text(report(lines, options, base, model.model_digest, len(cases)))


def report(
    lines: list[str], options: argparse.Namespace, base: SamConfig, digest: str, volumes: int
) -> str:
    command = (
        f"python benchmarks/nano_sam2.py --patients {options.patients} --seed {options.seed} "
        f"--difficulty {options.difficulty} --out benchmarks/results/nano_sam2.md"
    )
    head = f"""# Nano SAM-2 on heart phantoms it never saw

Made by `{command}` on {datetime.date.today().isoformat()}; {platform.machine()} CPU, one thread,
shared with other work, so that the times are upper bounds. Weights {digest[:16]}, input
{base.input_size}, crop to the prompts with margin {base.roi_margin}. {options.patients} phantom
patients, {volumes} volumes, phantom seed {options.seed}. Dice per volume; interval: bootstrap over
patients of the mean over classes.

"""
    return head + "\n".join(lines) + "\n"  # what it means is added by hand


if __name__ == "__main__":
    main()
