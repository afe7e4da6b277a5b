"""What the page says, on rows made by hand."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest

from sssflow.bench.protocol import Protocol
from sssflow.bench.published import PublishedRow, published_rows
from sssflow.bench.scores import METRICS, Comparison, Estimate, GroupRow
from sssflow.bench.table import markdown, table_csv
from sssflow.contracts.base import ObjectRef
from sssflow.contracts.bench import RunKey, RunResult
from sssflow.contracts.evaluation import Figure

REF = ObjectRef(uri="x", size_bytes=0, sha256="0" * 64)


def result(seed: int, last: float | None = None, best: float | None = None) -> RunResult:
    figure = Figure(value=0.5, count=1, excluded=0)
    return RunResult(
        key=RunKey(method="mean_teacher", variant="default", labelled=2, seed=seed),
        order_digest="0" * 64, config_digest="0" * 64, dataset_digest="0" * 64, model=REF,
        model_digest="0" * 64, weights_bytes=0, selection="last step (nothing was selected)",
        best_step=1, steps_in_all=1, validation_dice_best=best, validation_dice_last=last,
        roles=("test",), cases=REF, strict={"dice": figure}, ssl4mis={},
        wall_time_s={"train": 60.0, "evaluate": 120.0}, device="cpu",
    )  # fmt: skip


def row(*results: RunResult, comparison: Comparison | None = None) -> GroupRow:
    return GroupRow(
        method="mean_teacher",
        variant="default",
        labelled=2,
        results=results or (result(1),),
        figures=dict.fromkeys(METRICS, Estimate(0.5)),
        dice_over_seeds=(0.5,) * max(1, len(results)),
        comparison=comparison,
        over_default=None,
    )


def page(protocol: Protocol, one: GroupRow, published: tuple[PublishedRow, ...] = ()) -> str:
    return markdown(protocol, [one], {}, [], published, [])


def cells(text: str, heading: str) -> list[dict[str, str]]:
    """The table below a heading, line by line, under its heads; of equal heads the last."""
    lines = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    grid = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "|" in line
    ]
    return [dict(zip(grid[0], line, strict=True)) for line in grid[2:]]


def test_published_rows_of_counts_that_were_run_and_of_counts_that_nobody_can_run_are_shown(
    tiny_protocol: Protocol,
) -> None:
    def entry(name: str, labelled: int | float | None) -> PublishedRow:
        return PublishedRow(method=name, labelled=labelled, dice=50, selection="s", source="t")

    published = (
        entry("nowhere", None),
        entry("ceiling", 70),
        entry("share", 0.8),
        entry("run", 2),
        entry("offered, not run", 1),
    )
    shown = cells(page(tiny_protocol, row(), published), "Published and ours")
    assert [(line["labelled"], line["row"]) for line in shown] == [
        ("80 %", "share"),
        ("2 patients", "**ours: mean_teacher, default** (1 seeds)"),
        ("2 patients", "run"),
        ("70 patients", "ceiling"),
        ("not known", "nowhere"),
    ]


def test_every_published_row_says_how_its_checkpoint_was_chosen_and_where_it_was_read() -> None:
    for section in ("acdc", "la", "bhsd"):
        rows = published_rows(section)
        assert all(entry.selection and entry.source for entry in rows)
        assert len({(entry.method, entry.labelled) for entry in rows}) == len(rows)
    records = {(e.method, e.labelled): (e.dice, e.jaccard) for e in published_rows("la")}
    assert records["MEDL", 4] == (90.49, 82.75)
    assert records["DualFete", 8] == (91.28, None)
    assert records["OPMatch", 8] == (91.06, 83.64)
    assert records["SFR+", 16] == (91.0, 83.53)
    (unknown,) = (entry for entry in published_rows("bhsd") if entry.labelled is None)
    assert "NOT COMPARABLE" in unknown.note


def test_whether_seeds_have_patients_of_their_own_is_read_from_their_data(
    tiny_protocol: Protocol,
) -> None:
    apart = result(2).model_copy(update={"dataset_digest": "1" * 64})
    assert "Every seed has patients of its own" in page(tiny_protocol, row(result(1), apart))
    assert "drawn together" in page(tiny_protocol, row(result(1), result(2)))


def test_a_collapsed_run_counts_in_the_mean_of_the_validation_dice(
    tiny_protocol: Protocol,
) -> None:
    text = page(tiny_protocol, row(result(1, last=0.0, best=0.5), result(2, last=0.5, best=0.5)))
    (line,) = cells(text, "Results")
    assert line["validation Dice best / last"] == "50.00 / 25.00"
    assert line["all stages, min"] == "3.0"


@pytest.mark.parametrize(("unit", "told"), [("mm", "1.50 mm"), ("voxel", "1.50")])
def test_strict_distances_stand_beside_published_ones_with_their_unit(
    tiny_protocol: Protocol, unit: str, told: str
) -> None:
    one = row()
    strict = {f"strict_hd95_pooled_{unit}": Estimate(3.0), f"strict_assd_{unit}": Estimate(1.5)}
    one = dataclasses.replace(one, figures={**one.figures, **strict})
    entry = PublishedRow(method="m", labelled=2, dice=50, selection="s", source="t")
    ours = cells(page(tiny_protocol, one, (entry,)), "Published and ours")[0]
    assert ours["ASD"] == told
    assert ours["HD95"] == told.replace("1.50", "3.00")


def test_a_gain_says_in_how_many_seeds_it_is_one_and_what_its_interval_leaves_out(
    tiny_protocol: Protocol,
) -> None:
    gains = {1: 0.02, 2: -0.01, 3: 0.03}
    versus = Comparison("supervised, default", Estimate(0.0133, 0.01, 0.02), 0.04, "test", gains)
    one = row(result(1), result(2), result(3), comparison=versus)
    text = page(tiny_protocol, one)
    (line,) = cells(text, "Results")
    assert line["gain over supervised"] == "+1.33 (+1.00 to +2.00); 2 of 3 seeds above 0"
    assert "take the trainings as they fell out" in text
    lines = list(csv.DictReader(io.StringIO(table_csv(tiny_protocol, [one], {}))))
    assert [(r["seed"], r["gain"]) for r in lines if r["seed"]] == [
        ("1", "0.02"),
        ("2", "-0.01"),
        ("3", "0.03"),
    ]


@pytest.mark.parametrize(
    ("training", "warmup", "told"),
    [(None, None, "660 of 1100"), (660, 440, "660 of 660 after 440"), (660, 0, "660 of 660")],
)
def test_the_kept_step_is_one_of_its_own_training(
    tiny_protocol: Protocol, training: int | None, warmup: int | None, told: str
) -> None:
    steps = {"best_step": 660, "steps_in_all": 1100}
    steps |= {"steps_of_training": training, "steps_of_warmup": warmup}
    found = result(1).model_copy(update=steps)
    page = markdown(tiny_protocol, [row(found)], {}, [], [], [])
    assert f"| {told} |" in page
    assert "| 1100 |" in page, "the column of all steps stays"
