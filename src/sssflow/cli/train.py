"""`sssflow train`: one student, one method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sssflow.cli.progress import working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    Plan,
    PrintConfigOption,
    SetOption,
    finish,
    need,
    quoted,
    read_experiment,
    show_config,
)

if TYPE_CHECKING:
    from sssflow.training.loop import Progress


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
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train a student on MANIFEST; Ctrl-C keeps a checkpoint and the same command resumes."""
    chosen = [*(settings or []), *([f"{section}.method={method}"] if method else [])]
    experiment = read_experiment(config, chosen)
    if print_config:
        show_config(experiment)
        return
    dataset = need(dataset, "MANIFEST", "manifest.json of `sssflow data pack`")
    out = need(out, "OUT", "the folder of the run")
    settings_of_run = experiment.training(section)
    masks = masks or []
    plan = Plan(
        "train",
        f"trains {settings_of_run.method} for {settings_of_run.steps} steps, "
        f"seed {settings_of_run.seed}",
        out,
        {"dataset": dataset, **{f"masks {i + 1}": path for i, path in enumerate(masks)}}
        | ({"start": start} if start else {})
        | ({"sam2": sam2} if sam2 else {})
        | ({"LEAKED LABELS": leak_labels_from} if leak_labels_from else {}),
        (f"watch: {quoted('tensorboard', '--logdir', out / 'tensorboard')}",),
    )
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.training import stage

    generalist = None
    if settings_of_run.method == "semisam":
        from sssflow.sam.generalist import load_generalist

        generalist = load_generalist(experiment.generalist, adapted=sam2)
    with working(f"train {settings_of_run.method}") as watch:
        record = stage.run(
            settings_of_run,
            dataset,
            out,
            masks=masks,
            start=start,
            generalist=generalist,
            leak_labels_from=leak_labels_from,
            resume=resume,
            progress=lambda now: watch.show(_standing(now), (now.step, now.steps)),
        )
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
