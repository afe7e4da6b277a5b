"""`sssflow train`: one student, one method."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sssflow.cli.processes import (
    Machine,
    MasterAddrOption,
    MasterPortOption,
    NodeRankOption,
    NodesOption,
    ProcessesOption,
    PulseOption,
    TimeoutOption,
    place,
    start_again,
    started_by_torchrun,
)
from sssflow.cli.progress import working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    Plan,
    PrintConfigOption,
    Session,
    SetOption,
    finish,
    need,
    quoted,
    read_experiment,
    show_config,
)
from sssflow.errors import UsageError

if TYPE_CHECKING:
    from sssflow.contracts.run import RunRecord
    from sssflow.experiment import ExperimentConfig
    from sssflow.sam.promptable import Generalist
    from sssflow.training.config import TrainConfig
    from sssflow.training.loop import Progress, ProgressCallback


def train(
    context: typer.Context,
    dataset: Annotated[
        Path | None,
        typer.Argument(metavar="MANIFEST", show_default=False, help="manifest.json of a dataset."),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", show_default=False, help="Folder of the run.")
    ] = None,
    section: Annotated[
        str, typer.Option(help="Which training of the experiment: warmup, baseline or train.")
    ] = "train",
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="Short for --set SECTION.method=…")
    ] = None,
    masks: Annotated[
        list[Path] | None,
        typer.Option("--masks", help="masks.json of SAM-2 (method sss); may be repeated."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="model.json whose weights the student starts from (the warm-up's)."),
    ] = None,
    sam2: Annotated[
        Path | None,
        typer.Option("--sam2", help="sam2.json of `sssflow sam2 adapt` (method semisam)."),
    ] = None,
    leak_labels_from: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="LEAKS LABELS, for semisam.preset=oracle_prompts alone: a dataset in which the "
            "unlabelled cases are labelled.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on from the newest good checkpoint in OUT.")
    ] = True,
    processes: ProcessesOption = None,
    timeout_s: TimeoutOption = 600.0,
    nodes: NodesOption = 1,
    node_rank: NodeRankOption = 0,
    master_addr: MasterAddrOption = "",
    master_port: MasterPortOption = 29500,
    pulse: PulseOption = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train a student on MANIFEST; Ctrl-C keeps a checkpoint and the same command resumes."""
    short = {"method": method, "processes": processes}
    chosen = [f"{section}.{key}={value}" for key, value in short.items() if value is not None]
    experiment = read_experiment(config, [*(settings or []), *chosen])
    if print_config:
        show_config(experiment)
        return
    dataset = need(dataset, "MANIFEST", "manifest.json of `sssflow data pack`")
    out = need(out, "OUT", "the folder of the run")
    settings_of_run = experiment.training(section)
    masks = masks or []
    _require_used(settings_of_run, section, masks, sam2)
    inputs = {f"masks {i + 1}": path for i, path in enumerate(masks)}
    asked = {"start": start, "sam2": sam2, "LEAKED LABELS": leak_labels_from}
    inputs |= {name: path for name, path in asked.items() if path}
    plan = _plan(settings_of_run, {"dataset": dataset, **inputs}, out)
    session = context.find_object(Session) or Session()
    if started_by_torchrun():
        session.out = out
    elif not plan.start(context, dry_run=dry_run):
        return
    elif settings_of_run.processes > 1:
        here = Machine(nodes, node_rank, master_addr, master_port)
        start_again(session.arguments, settings_of_run.processes, here, timeout_s, pulse)
        return
    from sssflow.training import stage
    from sssflow.training.distributed import joined

    world = place(timeout_s)
    with (
        _progress(settings_of_run.method, shown=world.is_first) as progress,
        joined(world, cuda=settings_of_run.device != "cpu"),
    ):
        record = stage.run(
            settings_of_run,
            dataset,
            out,
            masks=masks,
            start=start,
            generalist=_generalist(experiment, section, sam2),
            leak_labels_from=leak_labels_from,
            resume=resume,
            progress=progress,
            world=world,
        )
    if world.is_first:
        _close(record, dataset, out)


def _require_used(
    config: TrainConfig, section: str, masks: Sequence[Path], sam2: Path | None
) -> None:
    """Refuse inputs that the method would pass over in silence.

    Raises:
        UsageError: There are some.
    """
    for option, given, method in (
        ("--masks", bool(masks) and not config.reads_masks, "sss"),
        ("--sam2", sam2 is not None and config.method != "semisam", "semisam"),
    ):
        if given:
            raise UsageError(
                f"The method {config.method} does not read what {option} names.",
                where=f"{section}.method",
                expected=method,
                found=config.method,
                action=f"Add --method {method}, or leave {option} out.",
            )


def _plan(config: TrainConfig, reads: Mapping[str, Path], out: Path) -> Plan:
    shared = f", in {config.processes} processes" if config.processes > 1 else ""
    return Plan(
        "train",
        f"trains {config.method} for {config.steps} steps, seed {config.seed}{shared}",
        out,
        reads,
        (f"watch: {quoted('tensorboard', '--logdir', out / 'tensorboard')}",),
    )


def _generalist(experiment: ExperimentConfig, section: str, sam2: Path | None) -> Generalist | None:
    if experiment.training(section).method != "semisam":
        return None
    from sssflow.sam.generalist import load_generalist

    return load_generalist(experiment.generalist, adapted=sam2)


@contextlib.contextmanager
def _progress(method: str, *, shown: bool) -> Iterator[ProgressCallback | None]:
    """Where the loop tells how far it is; of several processes one shows it."""
    if not shown:
        yield None
        return
    with working(f"train {method}") as watch:
        yield lambda now: watch.show(_standing(now), (now.step, now.steps))


def _close(record: RunRecord, dataset: Path, out: Path) -> None:
    facts: dict[str, object] = {"kept step": f"{record.best_step} of {record.steps}"}
    if record.notes:
        facts["notes"] = " ".join(record.notes)
    facts |= {name: f"{value:.4f}" for name, value in sorted(record.metrics.items())}
    model = out / "model" / "model.json"
    finish(
        out / "run.json",
        facts,
        [
            quoted("sssflow", "prompts", dataset, model, "PROMPTS"),
            quoted("sssflow", "evaluate", dataset, "EVALUATION", "--model", f"{out.name}={model}"),
            quoted("sssflow", "export", dataset, model, "BUNDLE"),
        ],
    )


def _standing(now: Progress) -> str:
    best = "" if now.best_dice is None else f", best validation Dice {now.best_dice:.3f}"
    return f"step {now.step} of {now.steps}, loss {now.loss:.3f}{best}"
