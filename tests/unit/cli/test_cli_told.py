"""What a verb tells before, during and after a run: steps, figures, where it goes on."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sssflow.cli.main import run
from sssflow.cli.pipeline import close, figures
from sssflow.cli.progress import MinuteLines, working
from sssflow.cli.train import shown_by
from sssflow.contracts.evaluation import EvaluationSummary, PairedGain
from sssflow.training.loop import Progress


def summary(low: float | None, p_value: float | None) -> EvaluationSummary:
    """What the figures read of an evaluation, with a gain of 8.3 points downwards."""
    gain = PairedGain(
        metric="dice",
        baseline="a",
        headline="b",
        gain=-0.083,
        low=low,
        high=None if low is None else 0.02,
        p_value=p_value,
        test="exact test",
        patients=8,
    )
    return EvaluationSummary.model_construct(models=(), gain=gain, sam2=())


@pytest.mark.parametrize(
    ("low", "p_value", "text"),
    [
        (-0.15, 0.0625, "-8.3 points (-15.0 to +2.0), p = 0.062"),
        (-0.15, None, "-8.3 points (-15.0 to +2.0)"),
        (None, None, "-8.3 points"),
    ],
)
def test_a_gain_is_told_with_its_interval_and_p(
    low: float | None, p_value: float | None, text: str
) -> None:
    assert figures(summary(low, p_value)) == {
        "gain on 8 patients": text,
        "interval and test": "exact test",
    }


@pytest.mark.parametrize("own_scans_next", [True, False])
def test_own_scans_are_proposed_after_phantoms_alone(
    own_scans_next: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    result = SimpleNamespace(
        summary=summary(None, None), wall_time_s=60.0, report=Path("report.html")
    )
    close(result, Path("out"), own_scans_next=own_scans_next)
    told = capsys.readouterr().out
    assert ("sssflow data check YOUR_SCANS" in told) == own_scans_next
    assert "open report.html in a browser" in told


def test_the_plan_names_the_steps_of_every_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a").write_text("")
    words = ["--source", str(tmp_path / "scans"), "-s", "warmup.steps=40"]
    words += ["-s", "baseline.steps=60", "-s", "train.steps=20", "--dry-run"]
    assert run(["pipeline", "run", str(tmp_path / "out"), *words]) == 0
    assert "sss, steps: warmup 40, baseline 60, train 20" in capsys.readouterr().out
    assert run(["demo", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "steps: warmup 600, baseline 1100, train 500" in capsys.readouterr().out


def test_a_resumed_training_says_at_once_where_it_goes_on() -> None:
    lines = list[str]()
    watch = MinuteLines("train sss", lines.append, clock=lambda: 0.0)
    watch.show("started")
    show = shown_by(watch)
    for step in (6, 7):
        show(Progress(step=step, steps=10, loss=0.5, seconds_left=1.0, best_dice=None))
    assert lines[1:] == ["train sss: 0 min 00 s | goes on after step 5"]
    show = shown_by(watch)
    for step in (1, 2):
        show(Progress(step=step, steps=10, loss=0.5, seconds_left=1.0, best_dice=None))
    assert len(lines) == 2


def test_a_bar_keeps_the_line_of_a_resumed_training() -> None:
    target = io.StringIO()
    terminal = Console(
        file=target,
        force_terminal=True,
        width=120,
        color_system=None,
        _environ={"TERM": "xterm"},
    )
    with working("train sss", terminal=terminal) as watch:
        shown_by(watch)(Progress(step=6, steps=10, loss=0.5, seconds_left=1.0, best_dice=None))
    assert "goes on after step 5\n" in target.getvalue()
