"""`sssflow sam2`: pre-train the nano SAM-2 that the package carries."""

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
    quoted,
    read_experiment,
    show_config,
)
from sssflow.configuration import load_config

app = typer.Typer(help="The promptable model itself.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The promptable model itself."""


@app.command()
def pretrain(
    context: typer.Context,
    out: OutArgument = None,
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", help="manifest.json whose labelled cases are shown too."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML with the keys of --print-config.")
    ] = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train nano SAM-2 on procedural shapes: OUT/nano.safetensors."""
    from sssflow.sam.config import PretrainConfig

    chosen = load_config(PretrainConfig, config, settings or ())
    if print_config:
        show_config(chosen)
        return
    out = need(out, "OUT", "the folder for the weights")
    does = f"trains nano SAM-2 for {chosen.steps} steps, seed {chosen.seed}"
    reads = {"dataset": dataset} if dataset is not None else {}
    from sssflow.cli.inputs import read_input
    from sssflow.contracts.dataset import DatasetManifest

    checks = [partial(read_input, DatasetManifest, path) for path in reads.values()]
    plan = Plan("sam2 pretrain", does, out, reads, checks=checks)
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.sam import pretrain as stage

    with working("pretrain"):
        path = stage.run(chosen, out, dataset=dataset)
    finish(
        path,
        then=[
            quoted("sssflow", "infer", "MANIFEST", "PROMPTS", "OUT", "--set", f"sam.weights={path}")
        ],
    )


@app.command()
def adapt(
    context: typer.Context,
    dataset: ManifestArgument = None,
    out: OutArgument = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Show nano SAM-2 the labelled cases of MANIFEST: OUT/sam2.json."""
    experiment = read_experiment(config, settings)
    if print_config:
        show_config(experiment)
        return
    dataset = need(dataset, "MANIFEST", "manifest.json of `sssflow data pack`")
    out = need(out, "OUT", "the folder for the weights")
    does = f"shows SAM-2 the labelled cases for {experiment.adapt.steps} steps"
    from sssflow.cli.inputs import read_input
    from sssflow.contracts.dataset import DatasetManifest

    checks = [partial(read_input, DatasetManifest, dataset)]
    plan = Plan("sam2 adapt", does, out, {"dataset": dataset}, checks=checks)
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.sam import adapt as stage

    with working("adapt"):
        stage.run(experiment.adapt, experiment.sam, dataset, out)
    path = out / stage.ADAPTED_FILE
    words = ["infer", dataset, "PROMPTS", "MASKS"]
    finish(
        path,
        then=[following(config, settings, *words, "--sam2", path)],
    )
