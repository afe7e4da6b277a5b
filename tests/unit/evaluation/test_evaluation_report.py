"""Words and charts of the report."""

from __future__ import annotations

import itertools
import re
from importlib.resources import files

import numpy as np
import pytest

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.dataset import DatasetManifest, Modality, Role, UnlabelledCase
from sssflow.contracts.evaluation import EvaluationSummary, Figure, PairedGain
from sssflow.evaluation.aggregate import Resampling
from sssflow.evaluation.config import EvaluateConfig
from sssflow.evaluation.metrics import CONVENTIONS, measure_case
from sssflow.evaluation.report import words
from sssflow.evaluation.report.charts import COLOURS, Group, Line, line_chart, strip_chart
from sssflow.evaluation.report.page import PageInput, render
from sssflow.evaluation.results import (
    CaseResult,
    ModelResult,
    TestSettings,
    model_figures,
    paired_gain,
)
from sssflow.volume.geometry import grid_without_spacing

DIGEST = "0" * 64


def gain(value: float, low: float | None, high: float | None, p: float | None) -> PairedGain:
    return PairedGain(
        metric="dice",
        baseline="supervised",
        headline="sss",
        gain=value,
        low=low,
        high=high,
        p_value=p,
        test="",
        patients=5,
    )


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("dice", "Dice, %"),
        ("hd95_pooled_mm", "HD95 pooled, mm"),
        ("hd95_voxel", "HD95 pooled, voxels"),
        ("nsd_2mm", "NSD at 2 mm, %"),
        ("nsd_2.5voxel", "NSD at 2.5 voxels, %"),
        ("volume_difference_abs_ml", "Volume difference, absolute, ml"),
    ],
)
def test_every_title_carries_its_unit(metric: str, title: str) -> None:
    assert words.metric_title(metric) == title


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.8456, "dice", "84.6"),
        (None, "dice", "–"),
        (12.345, "hd95_pooled_mm", "12.3"),
        (1.234, "assd_mm", "1.23"),
        (-3.21, "volume_difference_ml", "−3.2"),
        (3.21, "volume_difference_ml", "+3.2"),
    ],
)
def test_numbers_are_rounded_as_the_metric_asks(
    value: float | None, metric: str, text: str
) -> None:
    assert words.number(value, metric) == text


def test_the_gain_is_told_with_interval_and_p_value() -> None:
    text = words.gain_sentence(gain(0.053, 0.021, 0.084, 0.03125))
    assert text == (
        "That is 5.3 percentage points above supervised (interval +2.1 to +8.4, p = 0.031)."
    )


def test_an_interval_over_zero_is_not_told_as_a_gain() -> None:
    text = words.gain_sentence(gain(0.01, -0.02, 0.04, 0.4))
    assert text.endswith("these cases do not show a difference.")


def test_a_loss_is_told_as_a_loss() -> None:
    text = words.gain_sentence(gain(-0.02, -0.03, -0.01, 0.0004))
    assert "2.0 percentage points below supervised" in text
    assert "−3.0 to −1.0, p < 0.001" in text


def test_one_patient_has_neither_interval_nor_test() -> None:
    assert "no interval and no test" in words.gain_sentence(gain(0.1, None, None, None))
    assert words.gain_sentence(None) == ""
    assert words.span(Figure(value=0.5), "dice") == ""


def test_charts_escape_names_and_mark_the_kept_step() -> None:
    chart = strip_chart([Group("<b>", {"m": [0.5, None]})], ["m"], label='a "quoted" label')
    assert "<b>" not in chart
    assert "&lt;b&gt;" in chart
    assert "&#34;quoted&#34;" in chart
    assert chart.count('class="dot m0"') == 1
    curve = line_chart(
        [Line("m", [(10, 0.2), (20, 0.6)], 20)], label="l", x_name="step", series=["m"]
    )
    assert curve.count("<polyline") == 1
    assert "kept step 20, 60.0\u00a0%" in curve


def test_a_chart_joins_only_cases_that_both_models_have() -> None:
    chart = strip_chart(
        [Group("RV", {"a": [0.1, None, 0.3], "b": [0.2, 0.5, None]})], ["a", "b"], label="l"
    )
    assert chart.count('class="pair"') == 1
    assert chart.count("<circle") == 4


def test_no_text_of_a_chart_lies_over_another_however_many_classes() -> None:
    names = ["supervised", "sss"]
    classes = [f"left adrenal gland {number}" for number in range(15)]
    values = {"supervised": [0.5], "sss": [0.52]}
    few = strip_chart([Group("RV", values)], names, label="")
    many = strip_chart([Group(name, values) for name in classes], names, label="")
    assert 'viewBox="0 0 860 300"' in few
    assert "--least" not in few
    wide = float(re.findall(r'viewBox="0 0 (\d+) 300" role="img" style="--least: \1px"', many)[0])
    numbers = [float(x) for x in re.findall(r'"mean-text" x="([\d.]+)"', many)]
    titles = [float(x) for x in re.findall(r'"axis strong" x="([\d.]+)"', many)]
    assert (len(numbers), len(titles)) == (30, 15)
    # Widths at the sizes of the style sheet: 10 px numbers of six signs, 11 px bold names.
    assert min(b - a for a, b in itertools.pairwise(numbers)) > 36
    assert min(b - a for a, b in itertools.pairwise(titles)) > 6.5 * len(classes[-1])
    assert numbers[-1] + 36 < wide


@pytest.mark.parametrize(("classes", "models"), [(1, 2), (3, 2), (3, 4), (5, 7)])
def test_no_number_of_a_chart_touches_the_bar_of_the_next_model(classes: int, models: int) -> None:
    names = [f"model{number}" for number in range(models)]
    values = {name: [1.0] for name in names}
    chart = strip_chart([Group(str(i), values) for i in range(classes)], names, label="")
    bars = [float(x) for x in re.findall(r'"mean m\d" x1="([\d.]+)"', chart)]
    numbers = [float(x) for x in re.findall(r'"mean-text" x="([\d.]+)"', chart)]
    assert len(bars) == len(numbers) == classes * models
    # 100.0 % at 10 px is 37 px wide.
    for number, bar in zip(numbers, bars[1:], strict=False):
        assert number + 37 < bar


def page_of(models: int) -> str:
    """The page of so many models, each worse than the one before, on two patients."""
    truth = np.zeros((2, 9, 9), np.uint8)
    truth[:, 1:4, 1:4] = 1
    results = []
    for step in range(models):
        measures = measure_case(
            np.roll(truth, step, axis=1),
            truth,
            class_count=2,
            spacing_shw_mm=(8.0, 1.0, 1.0),
            nsd_tolerances=(2.0,),
        )
        cases = tuple(CaseResult(f"c{p}", f"p{p}", Role.TEST, measures) for p in range(2))
        results.append(ModelResult(f"m{step}", DIGEST, "supervised", 1, cases))
    settings = TestSettings(Resampling(100, 0.95, 1), 100)
    names = ("background", "disc")
    image = ObjectRef(uri="c.b2nd", size_bytes=1, sha256=DIGEST)
    grid = grid_without_spacing((2, 9, 9))
    summary = EvaluationSummary(
        dataset_name="d",
        dataset_digest=DIGEST,
        split_rule="",
        roles=("test",),
        cases=2,
        patients=2,
        distance_unit="mm",
        class_names=names,
        config=EvaluateConfig().model_dump(mode="json"),
        config_digest=DIGEST,
        versions={},
        conventions=CONVENTIONS,
        models=tuple(model_figures(result, names, settings) for result in results),
        gain=paired_gain(results[-1], results[0], settings),
        files={},
    )
    manifest = DatasetManifest(
        name="d",
        source_layout="nnunet",
        class_names=names,
        source_digest=DIGEST,
        split_rule="",
        cases=(
            UnlabelledCase(
                case_id="c", patient_id="p", image=image, grid=grid, modality=Modality.MR
            ),
        ),
    )
    return render(PageInput("title", summary, results, {}, manifest, ()))


def test_a_difference_of_one_of_several_models_says_of_which_two() -> None:
    # Dice 1, 2/3, 1/3: the last minus the first.
    page = page_of(3)
    assert ">Change in Dice, m2 minus m0, points</th>" in page
    assert ">Gain in Dice, paired, m2 minus m0<" in page
    assert page.count("\u221266.7</td>") == 2
    page = page_of(2)
    assert ">Change in Dice, points</th>" in page
    assert ">Gain in Dice, paired<" in page


def test_a_seventh_model_has_a_colour_of_the_style_sheet() -> None:
    names = [f"model{number}" for number in range(7)]
    strips = strip_chart([Group("RV", {name: [0.5] for name in names})], names, label="")
    lines = [Line(name, [(10, 0.2)]) for name in names]
    curves = line_chart(lines, label="", x_name="step", series=names)
    assert (strips.count('class="dot m0"'), curves.count('class="curve m0"')) == (2, 2)
    style = (files("sssflow.evaluation.report") / "template" / "style.css").read_text()
    known = {f"m{number}" for number in range(COLOURS)}
    assert set(re.findall(r"\.chart \.(m\d+) ", style)) == known
    assert set(re.findall(r"\.key\.(m\d+) ", style)) == known
