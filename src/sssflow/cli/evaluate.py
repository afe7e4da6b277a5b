"""`sssflow evaluate`: measure models on cases with masks, with intervals, and write the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sssflow.cli.pipeline import figures
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
from sssflow.errors import UsageError


def evaluate(
    context: typer.Context,
    dataset: ManifestArgument = None,
    out: OutArgument = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=MODEL",
            help="model.json under a name; the first is the baseline, the last the headline.",
        ),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="NAME=RUN", help="run.json of a model: curves and times."),
    ] = None,
    masks: Annotated[
        list[Path] | None, typer.Option("--masks", help="masks.json to measure too.")
    ] = None,
    prompts: Annotated[
        list[Path] | None, typer.Option("--prompts", help="prompts.json that --masks came from.")
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Measure models on MANIFEST: OUT/report.html, OUT/metrics/, OUT/overlays/."""
    experiment = read_experiment(config, settings)
    if print_config:
        show_config(experiment)
        return
    dataset = need(dataset, "MANIFEST", "manifest.json of `sssflow data pack`")
    out = need(out, "OUT", "the folder for the report")
    models = named_paths(model or [], "--model")
    if not models:
        raise UsageError(
            "No model was named.",
            expected="--model NAME=path/to/model.json",
            action="Name one; `sssflow train` leaves it at RUN/model/model.json.",
        )
    runs = named_paths(run or [], "--run")
    masks, prompts = masks or [], prompts or []
    reads = {"dataset": dataset, **models}
    reads |= {f"run {name}": path for name, path in runs.items()}
    reads |= {f"masks {i + 1}": path for i, path in enumerate(masks)}
    reads |= {f"prompts {i + 1}": path for i, path in enumerate(prompts)}
    does = f"measures {', '.join(models)} per case and patient, and writes the report"
    checks = [partial(_check, dataset, models, runs, masks, prompts)]
    plan = Plan("evaluate", does, out, reads, checks=checks)
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.cli.known import run_of
    from sssflow.evaluation import stage

    with working("evaluate"):
        summary = stage.run(
            experiment.evaluate, dataset, models, out, runs=runs, masks=masks, prompts=prompts
        )
    name, headline = list(models.items())[-1]
    record = runs.get(name) or run_of(headline)
    words = ["export", dataset, headline, "BUNDLE", *(["--run", record] if record else [])]
    words += ["--evaluation", out / stage.SUMMARY_FILE]
    finish(out / "report.html", figures(summary), [following(config, settings, *words)])


def _check(
    dataset: Path,
    models: Mapping[str, Path],
    runs: Mapping[str, Path],
    masks: Sequence[Path],
    prompts: Sequence[Path],
) -> None:
    from sssflow.cli.inputs import read_input
    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.contracts.masks import MaskSet
    from sssflow.contracts.model import TrainedModel
    from sssflow.contracts.prompts import PromptSet
    from sssflow.contracts.run import RunRecord

    read_input(DatasetManifest, dataset)
    for kind, paths in (
        (TrainedModel, models.values()),
        (RunRecord, runs.values()),
        (MaskSet, masks),
        (PromptSet, prompts),
    ):
        for path in paths:
            read_input(kind, path)


def named_paths(texts: Sequence[str], option: str) -> dict[str, Path]:
    """`NAME=PATH` texts as an ordered mapping.

    Raises:
        UsageError: No `=`, an empty side, or a name given twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not (separator and name and path):
            meant = f"{name or 'NAME'}={path or 'PATH'}" if separator else f"NAME={text or 'PATH'}"
            raise UsageError(
                f"{option} needs a name and a path.",
                expected="NAME=PATH",
                found=text,
                action=f"Write {option} {meant}; the report shows the name.",
            )
        if name in found:
            raise UsageError(
                f"{option} has one name twice.", found=name, action="Give each path its own name."
            )
        found[name] = Path(path)
    return found
