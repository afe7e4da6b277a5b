"""`sssflow prompts`: coarse masks of a trained model become prompts for SAM-2."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sssflow.cli.progress import working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    ManifestArgument,
    OutArgument,
    Plan,
    PrintConfigOption,
    SetOption,
    finish,
    following,
    need,
    read_experiment,
    show_config,
)


def prompts(
    context: typer.Context,
    dataset: ManifestArgument = None,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", show_default=False, help="model.json of a trained run."),
    ] = None,
    out: OutArgument = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Only this case; may be repeated.")
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Segment the cases without masks and choose prompts by PCSW: OUT/prompts.json."""
    experiment = read_experiment(config, settings)
    if print_config:
        show_config(experiment)
        return
    dataset = need(dataset, "MANIFEST", "manifest.json of `sssflow data pack`")
    model = need(model, "MODEL", "model.json of `sssflow train`")
    out = need(out, "OUT", "the folder for prompts.json")
    from sssflow.cli.inputs import check_prompting
    from sssflow.cli.known import adapted_to

    plan = Plan(
        "prompts",
        "predicts coarse masks and chooses boxes and points by PCSW; reads no label",
        out,
        {"dataset": dataset, "model": model},
        checks=[partial(check_prompting, dataset, model, case or ())],
    )
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.prompts import stage

    with working("prompts"):
        found = stage.run(experiment.prompts, dataset, model, out, case_ids=case or None)
    path = out / "prompts.json"
    objects = sum(len(one.objects) for one in found.cases)
    slices = sum(len(o.slices) for one in found.cases for o in one.objects)
    facts = {"cases": len(found.cases), "objects": objects, "prompted slices": slices}
    sam2 = adapted_to(dataset, out)
    words = ["infer", dataset, path, "MASKS", *(["--sam2", sam2] if sam2 else [])]
    finish(path, facts, [following(config, settings, *words)])
