"""`sssflow predict`: the finished model on new scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sssflow.cli.progress import working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    OutArgument,
    Plan,
    PrintConfigOption,
    SetOption,
    finish,
    need,
    read_experiment,
    show_config,
)


def predict(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", show_default=False, help="model.json of `sssflow train`."),
    ] = None,
    scans: Annotated[
        Path | None,
        typer.Argument(metavar="SCANS", show_default=False, help="A NIfTI file, or their folder."),
    ] = None,
    out: OutArgument = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="A further model.json; probabilities are averaged."),
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Segment SCANS with a trained MODEL: OUT/SCAN.nii.gz on each scan's own grid.

    The section `evaluate` says what is done at test time (mirror images, largest component), so
    that the masks are those that were measured. OUT may hold masks of earlier calls of the same
    models and settings, which are kept; no other file of it is replaced.
    """
    experiment = read_experiment(config, settings)
    if print_config:
        show_config(experiment)
        return
    model = need(model, "MODEL", "model.json of `sssflow train`")
    scans = need(scans, "SCANS", "a NIfTI file, or a folder of them")
    out = need(out, "OUT", "the folder for the masks")
    from sssflow.cli.inputs import read_input
    from sssflow.contracts.model import TrainedModel
    from sssflow.prediction import masks

    models = {"model": model}
    models |= {f"beside {i}": path for i, path in enumerate(beside or [], start=1)}
    does = "segments each scan, and writes its mask on its own grid"
    target, place = out, scans

    def look() -> None:
        described = [read_input(TrainedModel, path) for path in models.values()]
        masks.check(experiment.evaluate, described, place, target)

    plan = Plan("predict", does, out, {**models, "scans": scans}, checks=[look])
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.prediction import stage

    with working("predict"):
        found = stage.run(experiment.evaluate, list(models.values()), scans, out)
    names = ", ".join(f"{k} {name}" for k, name in enumerate(found.class_names) if k > 0)
    facts: dict[str, object] = {"masks": len(found.scans), "classes": names}
    if found.warnings:
        facts["warnings"] = "; ".join(found.warnings)
    finish(out / masks.RECORD_FILE, facts)
