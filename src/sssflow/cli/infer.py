"""`sssflow infer`: SAM-2 turns prompts into scored soft masks."""

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


def infer(
    context: typer.Context,
    dataset: ManifestArgument = None,
    prompts: Annotated[
        Path | None,
        typer.Argument(metavar="PROMPTS", show_default=False, help="prompts.json."),
    ] = None,
    out: OutArgument = None,
    sam2: Annotated[
        Path | None, typer.Option("--sam2", help="sam2.json of `sssflow sam2 adapt`.")
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run SAM-2 with PROMPTS through the volumes of MANIFEST: OUT/masks.json."""
    experiment = read_experiment(config, settings)
    if print_config:
        show_config(experiment)
        return
    dataset = need(dataset, "MANIFEST", "manifest.json of `sssflow data pack`")
    prompts = need(prompts, "PROMPTS", "prompts.json of `sssflow prompts`")
    out = need(out, "OUT", "the folder for masks.json")
    from sssflow.cli.inputs import check_graphs, check_inference, check_weights
    from sssflow.cli.known import prompted_by

    sam = experiment.sam
    checks = [partial(check_inference, dataset, prompts, sam2)]
    if sam2 is None and sam.backend == "torch":
        checks.append(partial(check_weights, sam.size, sam.weights, "sam.weights"))
    elif sam2 is None:
        checks.append(partial(check_graphs, sam))
    plan = Plan(
        "infer",
        f"carries the prompts through each volume with SAM-2 ({sam.size})",
        out,
        {"dataset": dataset, "prompts": prompts} | ({"sam2": sam2} if sam2 else {}),
        checks=checks,
    )
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.sam import stage

    with working("infer"):
        masks = stage.run(sam, dataset, prompts, out, weights=sam2)
    path = out / "masks.json"
    words = ["train", dataset, "RUN", "--method", "sss", "--masks", path]
    finish(
        path,
        {"cases": len(masks.cases), "backend": masks.backend},
        [following(config, settings, *words, "--start", prompted_by(prompts, out) or "MODEL")],
    )
