"""Which cases are shown, and what of them: overlay PNGs and the slice viewer of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import LabelledCase
from sssflow.contracts.prompts import CasePrompts
from sssflow.evaluation.config import EvaluateConfig, ReportConfig
from sssflow.evaluation.mask_quality import MaskGroup, coarse_of, labels_of
from sssflow.evaluation.overlays import CaseView, write_case_overlay, write_montage
from sssflow.evaluation.predictions import Labels, PredictionStore, Scans
from sssflow.evaluation.report.sprites import ViewerCase, ViewerInput, build_case
from sssflow.evaluation.results import ModelResult, worst_first
from sssflow.storage.atomic import disk_errors
from sssflow.storage.digest import reference

_OVERLAYS = "overlays"


@dataclass(frozen=True)
class Gallery:
    """Everything that can be drawn, read from disk one case at a time.

    Attributes:
        scans: The dataset.
        store: Where the predictions lie.
        results: One per model; the last ranks the cases.
        predictions: Model, then case id, to the stored prediction.
        groups: SAM-2 masks, may be empty; the last group that holds a case is shown.
    """

    scans: Scans
    store: PredictionStore
    results: Sequence[ModelResult]
    predictions: Mapping[str, Mapping[str, ObjectRef]]
    groups: Sequence[MaskGroup] = ()

    def case(self, case_id: str) -> LabelledCase:
        """The case of an id; only cases with a truth are drawn."""
        (found,) = self.scans.manifest.select([case_id])
        if not isinstance(found, LabelledCase):
            raise TypeError(f"{case_id} has no truth")
        return found

    def predicted(self, case: LabelledCase) -> dict[str, Labels]:
        """Prediction of every model."""
        return {
            name: self.store.read(refs[case.case_id], case)
            for name, refs in self.predictions.items()
        }

    def prompted(self, case: LabelledCase) -> tuple[dict[str, Labels], CasePrompts | None]:
        """Coarse and SAM-2 masks by name, and the prompts between them, where there are any."""
        for group in reversed(self.groups):
            stored = group.cases.get(case.case_id)
            if stored is None:
                continue
            coarse = coarse_of(stored, case)
            shown = {} if coarse is None else {"coarse mask": coarse}
            shown["SAM-2 mask"] = labels_of(stored, case)
            return shown, stored.prompts.case if stored.prompts else None
        return {}, None

    def note(self, case_id: str) -> str:
        """Role and mean Dice of every model, in words."""
        scores = []
        for result in self.results:
            found = next((c for c in result.cases if c.case_id == case_id), None)
            dice = found.mean_dice() if found else None
            if dice is not None:
                scores.append(f"{result.name} {100 * dice:.1f} %")
        role = self.case(case_id).role.value
        return f"{role}, Dice {', '.join(scores)}" if scores else f"{role}, not in the means"

    def view(self, case_id: str) -> CaseView:
        """All that an overlay picture needs."""
        case = self.case(case_id)
        return CaseView(
            case_id=case_id,
            note=self.note(case_id),
            image_shw=self.scans.image(case),
            truth_shw=self.scans.truth(case),
            predictions=self.predicted(case),
            spacing_hw=case.grid.spacing_shw_mm[1:],
        )


def draw_overlays(gallery: Gallery, config: EvaluateConfig, out: Path) -> tuple[ObjectRef, ...]:
    """Write `overlays/worst_<rank>_<case>.png` and `overlays/median.png`; older ones go.

    Raises:
        UnavailableError: The disk is full or read-only.
    """
    folder = out / _OVERLAYS
    with disk_errors(folder):
        for old in sorted(folder.glob("*.png")):
            old.unlink()
    names = gallery.scans.manifest.class_names
    order = worst_first(gallery.results[-1])
    written = []
    for rank, case_id in enumerate(order[: config.worst_cases], start=1):
        path = folder / f"worst_{rank:02d}_{case_id}.png"
        write_case_overlay(path, gallery.view(case_id), names)
        written.append(path)
    middle = _middle(order[: _scored(gallery.results[-1])], config.median_cases)
    if middle:
        path = folder / "median.png"
        write_montage(path, [gallery.view(case_id) for case_id in middle], names)
        written.append(path)
    return tuple(reference(path, base=out) for path in written)


def viewer_cases(
    gallery: Gallery, config: ReportConfig, extra: Sequence[LabelledCase]
) -> tuple[ViewerCase, ...]:
    """Worst, median and best cases in turn, then those without Dice.

    `extra`, shown for their SAM-2 masks alone, have their place even if the measured cases fill
    the viewer.
    """
    if config.viewer_cases == 0:
        return ()
    order, scored = worst_first(gallery.results[-1]), _scored(gallery.results[-1])
    ranked = _in_turn(order[:scored]) | dict.fromkeys(order[scored:], "no Dice")
    chosen = list(ranked.items())[: max(1, config.viewer_cases - len(extra))]
    # After the first three: the page drops cases from the end when it grows too large.
    chosen[3:3] = [(case.case_id, "SAM-2 masks") for case in extra]
    return tuple(
        _viewer_case(gallery, case_id, kind, config)
        for case_id, kind in chosen[: config.viewer_cases]
    )


def _viewer_case(gallery: Gallery, case_id: str, kind: str, config: ReportConfig) -> ViewerCase:
    case = gallery.case(case_id)
    prompted, prompts = gallery.prompted(case)
    view = ViewerInput(
        case_id=case_id,
        note=f"{kind}; {gallery.note(case_id)}",
        image_shw=gallery.scans.image(case),
        truth_shw=gallery.scans.truth(case),
        masks={**gallery.predicted(case), **prompted},
        prompts=prompts,
        spacing_hw=case.grid.spacing_shw_mm[1:],
    )
    return build_case(view, side_px=config.viewer_side_px, max_slices=config.viewer_slices)


def _scored(result: ModelResult) -> int:
    """How many cases have a Dice; in the others truth and prediction are empty."""
    return sum(case.mean_dice() is not None for case in result.cases)


def _middle(order: Sequence[str], count: int) -> Sequence[str]:
    start = max(0, (len(order) - count) // 2)
    return order[start : start + count]


def _in_turn(order: Sequence[str]) -> dict[str, str]:
    """Worst, median, best, second worst, … each case once, with the word for it."""
    half = len(order) // 2
    around = sorted(order, key=lambda case_id: (abs(order.index(case_id) - half), case_id))
    ranked: dict[str, str] = {}
    for worst, median, best in zip_longest(order[:half], around, list(order)[:half:-1]):
        for case_id, kind in ((worst, "low Dice"), (median, "median Dice"), (best, "high Dice")):
            if case_id is not None:
                ranked.setdefault(case_id, kind)
    return ranked
