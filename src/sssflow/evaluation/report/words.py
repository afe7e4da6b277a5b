"""Numbers and findings in words: sober, with units, no claim beyond the interval."""

from __future__ import annotations

from collections.abc import Sequence

from sssflow.contracts.evaluation import EvaluationSummary, Figure, PairedGain, p_text

_TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "jaccard": "Jaccard",
    "hd95_pooled": "HD95 pooled",
    "hd95_max": "HD95 max",
    "hd95": "HD95 pooled",
    "assd": "ASSD",
    "asd": "ASD",
    "volume_difference": "Volume difference",
    "volume_difference_abs": "Volume difference, absolute",
}

_UNITS = {"mm": "mm", "voxel": "voxels", "ml": "ml"}

FEW_PATIENTS = 10
"""Below so many patients the report says that intervals are rough."""


def metric_title(metric: str) -> str:
    """`hd95_pooled_mm` to `HD95 pooled, mm`; shares are told in percent."""
    if metric.startswith("nsd_"):
        tolerance = metric.removeprefix("nsd_")
        number = tolerance.removesuffix("mm").removesuffix("voxel")
        unit = "mm" if tolerance.endswith("mm") else "voxels"
        return f"NSD at {number} {unit}, %"
    base, _, unit = metric.rpartition("_")
    if unit in _UNITS and base in _TITLES:
        return f"{_TITLES[base]}, {_UNITS[unit]}"
    return f"{_TITLES.get(metric, metric)}, %"


def is_share(metric: str) -> bool:
    """Whether the metric lies between 0 and 1 and is told in percent."""
    return metric in ("dice", "iou", "jaccard") or metric.startswith("nsd_")


def number(value: float | None, metric: str) -> str:
    """A value in the unit of the title; an en dash where there is none."""
    if value is None:
        return "–"
    if is_share(metric):
        return f"{100 * value:.1f}"
    if metric == "volume_difference_ml":
        return f"{value:+.1f}".replace("-", "−")
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def span(figure: Figure, metric: str) -> str:
    """The interval as `low to high`; empty where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{number(figure.low, metric)} to {number(figure.high, metric)}"


def points(value: float) -> str:
    """A difference of shares as signed percentage points."""
    return f"{100 * value:+.1f}".replace("-", "−")


def plural(count: int, name: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def confidence(summary: EvaluationSummary) -> str:
    """`95 % interval`, with a space that does not break."""
    return f"{100 * float(summary.config['confidence']):g}\u00a0% interval"


def headline(summary: EvaluationSummary) -> str:
    """The finding in two or three sentences."""
    last = summary.models[-1]
    dice = last.strict["dice"]
    roles = " and ".join(summary.roles)
    base = f"{plural(summary.cases, f'{roles} case')} of {plural(summary.patients, 'patient')}"
    if dice.value is None:
        return f"On {base} no class could be scored: truth and prediction are empty throughout."
    known = span(dice, "dice")
    interval = f" ({confidence(summary)} {known})" if known else ""
    score = number(dice.value, "dice")
    first = f"On {base}, {last.name} reaches a mean Dice of {score}\u00a0%{interval}."
    return f"{first} {gain_sentence(summary.gain)}".strip()


def gain_sentence(gain: PairedGain | None) -> str:
    """What the paired comparison shows, and whether it shows anything."""
    if gain is None:
        return ""
    size = points(abs(gain.gain)).lstrip("+")
    direction = "above" if gain.gain >= 0 else "below"
    text = f"That is {size} percentage points {direction} {gain.baseline}"
    if gain.low is None or gain.high is None:
        return f"{text}, measured on one patient: no interval and no test."
    text += f" (interval {points(gain.low)} to {points(gain.high)}, {p_text(gain.p_value)})."
    if gain.low <= 0 <= gain.high:
        text += " The interval includes zero: these cases do not show a difference."
    return text


def first_caveats(*, alarms: Sequence[str], chosen_by: Sequence[str], phantoms: bool) -> list[str]:
    """What stands in the box at the head of the page; `alarms` in their own words."""
    found = ["For research. Not a medical device; not for diagnosis or treatment.", *alarms]
    if chosen_by:
        found.append(
            "Measured cases are validation cases of the training, which also chose the kept "
            f"training step of {', '.join(chosen_by)}: the figures are somewhat optimistic. A test "
            "split has no such bias."
        )
    if phantoms:
        found.append(
            "The scans are phantoms: drawn by a program, not taken from patients. The figures show "
            "that the flow works; they say nothing on performance in patients."
        )
    return found


def further_caveats(summary: EvaluationSummary, *, told: Sequence[str]) -> list[str]:
    """What a reader must know besides what was `told` before using a number of the page."""
    found = []
    if summary.patients < FEW_PATIENTS:
        found.append(
            f"Only {plural(summary.patients, 'patient')}: intervals are rough and tend to be too "
            "narrow, and a small p-value cannot be reached."
            if summary.patients < 6
            else f"Only {plural(summary.patients, 'patient')}: intervals are rough and tend to be "
            "too narrow."
        )
    if summary.distance_unit == "voxel":
        found.append(
            "The source stores no voxel spacing: distances are in voxels, tolerances of NSD too, "
            "and volumes in ml do not exist."
        )
    return [*found, *(note for note in summary.notes if note not in told)]
