"""`sssflow pipeline`: compile the KFP pipeline, run it on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sssflow.cli import cluster
from sssflow.cli.data import require_scans
from sssflow.cli.progress import Watch, parse_count, working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    OutArgument,
    Plan,
    PrintConfigOption,
    SetOption,
    finish,
    need,
    percent,
    quoted,
    read_experiment,
    show_config,
)
from sssflow.errors import UsageError
from sssflow.storage.uri import to_path

if TYPE_CHECKING:
    from sssflow.contracts.evaluation import EvaluationSummary
    from sssflow.experiment import ExperimentConfig
    from sssflow.pipeline.events import TaskEvent
    from sssflow.pipeline.results import LocalRunResult

app = typer.Typer(help="The whole flow as a Kubeflow pipeline.", no_args_is_help=True)


@app.command("compile")
def compile_(
    out: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", show_default=False, help="Default: pipelines/NAME.yaml."),
    ] = None,
    name: Annotated[str, typer.Option(help="Which pipeline.")] = "sss_training",
) -> None:
    """Compile a pipeline of this checkout to the IR that KFP runs."""
    from sssflow.pipeline.ir import compile_pipeline

    path = compile_pipeline(name, out or Path("pipelines") / f"{name}.yaml")
    finish(path, then=[quoted("sssflow", "pipeline", "run", "OUT", "--source", "SCANS")])


@app.command("run")
def run(
    context: typer.Context,
    out: OutArgument = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Folder of scans, or s3:// scans; without it the phantoms of --config.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="Where tasks keep their results, s3:// too; default: OUT."),
    ] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run the compiled pipeline on this machine, task by task, with KFP's local runner."""
    experiment = read_experiment(config, settings)
    if print_config:
        show_config(experiment)
        return
    out = need(out, "OUT", "the folder for the results")
    _require_places(source, store)
    if source is None:
        experiment.require_phantoms()
    elif not source.startswith("s3://"):
        require_scans(to_path(source), experiment.ingest.layout)
    plan = Plan(
        "pipeline run",
        f"{_what(experiment)}, with KFP's local runner",
        out,
        {} if source is None or source.startswith("s3://") else {"scans": to_path(source)},
        (
            f"finished tasks are kept in {store or 'OUT/work'}: "
            "the same command continues an interrupted run",
        ),
    )
    if plan.start(context, dry_run=dry_run):
        result = run_here(experiment, out, source, store or None)
        close(result, out, own_scans_next=source is None)


def _require_places(source: str | None, store: str | None) -> None:
    """Refuse addresses that the first task would refuse, and a store that is a file.

    Raises:
        UsageError: There is one.
    """
    from sssflow.storage.s3_calls import S3Address

    for address in filter(None, (source, store)):
        if address.startswith("s3://"):
            S3Address.parse(address)
        elif address == store and to_path(store).is_file():
            raise UsageError(
                "The store must be a folder, and this is a file.",
                where=store,
                action="Name a folder; one that is not there is made.",
            )


def run_here(
    experiment: ExperimentConfig, out: Path, source: str | None = None, store: str | None = None
) -> LocalRunResult:
    """Run the pipeline into `out` and show its tasks; `out/work` keeps what it needs to go on."""
    from sssflow.pipeline.ir import compiled_pipeline
    from sssflow.pipeline.local import run_local

    parameters = {"config_json": experiment.model_dump_json()}
    if source is not None:
        parameters["source"] = _absolute(source)
    if store is not None:
        parameters["store_uri"] = _absolute(store)
    with working("pipeline") as watch:
        return run_local(
            compiled_pipeline(), parameters, out / "work", out=out, on_event=_shown_by(watch)
        )


def close(result: LocalRunResult, out: Path, *, own_scans_next: bool) -> None:
    """Say the figures that matter, where everything is, and what to do next.

    `own_scans_next`: the run was on phantoms, and a person may want to go on to own scans; else
    the model may be wanted on new ones.
    """
    facts = figures(result.summary)
    facts["took"] = f"{result.wall_time_s / 60:.1f} min"
    then = [
        f"open {result.report} in a browser",
        quoted("tensorboard", "--logdir", out / "tensorboard"),
    ]
    if own_scans_next:
        then.append(quoted("sssflow", "data", "check", "YOUR_SCANS"))
    else:
        model = out / "runs" / "headline" / "model" / "model.json"
        then.append(quoted("sssflow", "predict", model, "NEW_SCANS", "MASKS"))
    finish(result.report, facts, then)


def figures(summary: EvaluationSummary) -> dict[str, object]:
    """Mean Dice of each model, the gain with interval and p, and SAM-2 against the coarse masks."""
    from sssflow.contracts.evaluation import p_text

    facts: dict[str, object] = {}
    for model in summary.models:
        dice = model.strict.get("dice")
        facts[f"Dice, {model.name}"] = percent(dice.value if dice else None)
    if summary.gain is not None:
        gain = summary.gain
        text = f"{100 * gain.gain:+.1f} points"
        if gain.low is not None and gain.high is not None:
            text += f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        if gain.p_value is not None:
            text += f", {p_text(gain.p_value)}"
        facts[f"gain on {gain.patients} patients"] = text
        facts["interval and test"] = gain.test
    for quality in summary.sam2:
        coarse = percent(quality.coarse.value) if quality.coarse else "unknown"
        facts["Dice, SAM-2 masks"] = f"{percent(quality.sam2.value)} (coarse masks: {coarse})"
    return facts


def _absolute(address: str) -> str:
    return address if "://" in address else str(Path(address).absolute())


def _what(experiment: ExperimentConfig) -> str:
    methods = f"{experiment.baseline.method} against {experiment.train.method}"
    return f"runs ingest to export, {methods}, {steps(experiment)}"


def steps(experiment: ExperimentConfig) -> str:
    """How long each training of the experiment is, in words."""
    found = {name: experiment.training(name).steps for name in ("warmup", "baseline", "train")}
    return f"steps: {', '.join(f'{name} {count}' for name, count in found.items())}"


def _shown_by(watch: Watch) -> Callable[[TaskEvent], None]:
    def show(event: TaskEvent) -> None:
        if event.state == "progress":
            count = parse_count(event.message)
            watch.show(f"{event.name}: {event.message}", count, task=event.name)
        elif event.state != "failed":  # a failure is told in full when the run ends
            watch.say(f"{event.name}: {event.state}")

    return show


cluster.add_to(app)
