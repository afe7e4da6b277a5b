"""`sssflow train`: one student, one method."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
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
from sssflow.cli.progress import Watch, working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    ManifestArgument,
    Plan,
    PrintConfigOption,
    Session,
    SetOption,
    finish,
    following,
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

_LEAKED = "LEAKED LABELS"


def train(
    context: typer.Context,
    dataset: ManifestArgument = None,
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
    short = {"--method": ("method", method), "--gpus": ("processes", processes)}
    options = {o: f"{section}.{key}={v}" for o, (key, v) in short.items() if v is not None}
    _require_section(section)
    experiment = read_experiment(config, settings, options)
    settings_of_run = experiment.training(section)
    if print_config:
        show_config(experiment)
        return
    dataset = need(dataset, "MANIFEST", "manifest.json of `sssflow data pack`")
    out = need(out, "OUT", "the folder of the run")
    masks = masks or []
    _require_used(settings_of_run, section, masks, sam2)
    asked = {"start": start, "sam2": sam2, _LEAKED: leak_labels_from}
    plan = _plan(settings_of_run, section, dataset, out, masks, asked)
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
        then = _next(section, dataset, out, start)
        _close(record, out, [following(config, settings, *words) for words in then])


def _require_section(section: str) -> None:
    """Refuse an unknown section before `--method` is put under its name.

    Raises:
        UsageError: There is no training section of that name.
    """
    from sssflow.experiment import ExperimentConfig

    ExperimentConfig().training(section)


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


def _plan(
    config: TrainConfig,
    section: str,
    dataset: Path,
    out: Path,
    masks: Sequence[Path],
    asked: Mapping[str, Path | None],
) -> Plan:
    from sssflow.cli.inputs import check_training

    reads = {"dataset": dataset} | {f"masks {i + 1}": path for i, path in enumerate(masks)}
    reads |= {name: path for name, path in asked.items() if path}
    sets = [path for path in (dataset, asked[_LEAKED]) if path]
    check = partial(check_training, config, section, sets, masks, asked["start"], asked["sam2"])
    shared = f", in {config.processes} processes" if config.processes > 1 else ""
    return Plan(
        "train",
        f"trains {config.method} for {config.steps} steps, seed {config.seed}{shared}",
        out,
        reads,
        (f"watch: {quoted('tensorboard', '--logdir', out / 'tensorboard')}",),
        [check],
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
        yield shown_by(watch)


def shown_by(watch: Watch) -> ProgressCallback:
    """Shows how far a training is, and says at once where a resumed one goes on."""
    steps = itertools.count()

    def show(now: Progress) -> None:
        if next(steps) == 0 and now.step > 1:
            watch.say(f"goes on after step {now.step - 1}")
        watch.show(_standing(now), (now.step, now.steps))

    return show


def _close(record: RunRecord, out: Path, then: Sequence[str]) -> None:
    facts: dict[str, object] = {"kept step": f"{record.best_step} of {record.steps}"}
    if record.notes:
        facts["notes"] = " ".join(record.notes)
    facts |= {name: f"{value:.4f}" for name, value in sorted(record.metrics.items())}
    finish(out / "run.json", facts, then)


def _next(section: str, dataset: Path, out: Path, start: Path | None) -> list[list[object]]:
    """Prompts after a warm-up; after another training what it is worth, beside its start."""
    from sssflow.cli.known import run_of

    model, name = out / "model" / "model.json", _model_name(out)
    models, runs = {name: model}, {name: out / "run.json"}
    if start is not None:
        run = run_of(start)
        first = "start" if run is None else _model_name(run.parent)
        first = "start" if first == name else first
        models = {first: start, **models}
        runs = {first: run, **runs} if run is not None else runs
    measure: list[object] = ["evaluate", dataset, "EVALUATION"]
    for option, named in (("--model", models), ("--run", runs)):
        for key, path in named.items():
            measure += [option, f"{key}={path}"]
    words = [measure, ["export", dataset, model, "BUNDLE", "--run", out / "run.json"]]
    return [["prompts", dataset, model, "PROMPTS"], *words] if section == "warmup" else words


def _model_name(run: Path) -> str:
    """The folder's name in the letters that `sssflow evaluate` takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", run.resolve().name).lstrip(".-_") or "model"


def _standing(now: Progress) -> str:
    best = "" if now.best_dice is None else f", best validation Dice {now.best_dice:.3f}"
    return f"step {now.step} of {now.steps}, loss {now.loss:.3f}{best}"
