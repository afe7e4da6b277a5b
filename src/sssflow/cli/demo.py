"""`sssflow demo`: the whole flow on phantom hearts."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from sssflow.cli.pipeline import close, run_here, steps
from sssflow.cli.session import (
    DryRunOption,
    Plan,
    PrintConfigOption,
    SetOption,
    read_experiment,
    show_config,
)

_SEEDS = ("phantoms.seed", "warmup.seed", "baseline.seed", "train.seed", "adapt.seed")


def demo(
    context: typer.Context,
    out: Annotated[
        Path, typer.Argument(metavar="[OUT]", help="Folder to write to.", show_default=True)
    ] = Path("demo"),
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of phantoms and trainings; default: the settings'.")
    ] = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Draw phantom hearts, label a few, and run the whole flow on them; needs no data, no GPU."""
    seeds = [] if seed is None else [f"{key}={seed}" for key in _SEEDS]
    with resources.as_file(resources.files("sssflow.cli") / "demo.yaml") as config:
        experiment = read_experiment(config, [*seeds, *(settings or [])])
    if print_config:
        show_config(experiment)
        return
    drawn = experiment.require_phantoms()
    plan = Plan(
        "demo",
        f"draws {drawn.patients} phantom hearts and trains {experiment.baseline.method} and "
        f"{experiment.train.method} on them, {steps(experiment)}",
        out,
        notes=("takes minutes on a laptop; the same command continues an interrupted demo",),
    )
    if plan.start(context, dry_run=dry_run):
        close(run_here(experiment, out), out, own_scans_next=True)
