"""`sssflow data`: check scans, pack them, push them to S3, sweep there, draw phantoms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sssflow.cli.progress import Watch, working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    OutArgument,
    Plan,
    PrintConfigOption,
    SetOption,
    console,
    finish,
    following,
    need,
    quoted,
    read_experiment,
    readable,
    show_config,
)
from sssflow.configuration import load_config
from sssflow.errors import DataError, DataProblems, UsageError

if TYPE_CHECKING:
    from sssflow.ingest.stage import CheckReport

_MOST_SHOWN = 8

app = typer.Typer(help="Check, pack, push or draw scans.", no_args_is_help=True)

Source = Annotated[
    Path | None, typer.Argument(metavar="SOURCE", show_default=False, help="Folder of scans.")
]
StoreAddress = Annotated[str, typer.Argument(metavar="S3", help="s3://BUCKET/PREFIX.")]


@app.command()
def check(
    context: typer.Context,
    source: Source = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Read SOURCE and list all problems at once; write nothing.

    Masks of patients whom the split leaves unlabelled are not opened.
    """
    experiment = read_experiment(config, settings)
    if print_config:
        show_config(experiment)
        return
    source = need(source, "SOURCE", "the folder of scans")
    require_scans(source, experiment.ingest.layout)
    plan = Plan("data check", "reads the scans and lists all problems", None, {"source": source})
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.ingest import stage

    with working("check") as watch:
        report = stage.check(experiment.ingest, source, progress=_cases(watch))
    _tell(report)
    if not report.ok:
        raise DataProblems(
            "The scans cannot be used as they are.",
            [DataError(**problem.model_dump()) for problem in report.problems],
            action="Correct every point below, then run the same command again.",
        )
    facts = {"layout": report.layout, "split": report.split_rule}
    finish(source, facts, [following(config, settings, "data", "pack", source, "OUT")])


@app.command()
def pack(
    context: typer.Context,
    source: Source = None,
    out: OutArgument = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Verify SOURCE, split it by patient and pack it into OUT/manifest.json.

    A dataset that lies in OUT is made again from the same source and settings, never replaced by
    one of other settings or other cases.
    """
    experiment = read_experiment(config, settings)
    if print_config:
        show_config(experiment)
        return
    source = need(source, "SOURCE", "the folder of scans")
    out = need(out, "OUT", "the folder for the dataset")
    require_scans(source, experiment.ingest.layout)
    from sssflow.ingest.replace import refuse_other

    refuse_other(experiment.ingest, source, out)
    plan = Plan(
        "data pack",
        "verifies every file, gives each patient a role and packs images and masks",
        out,
        {"source": source},
        ("the manifest is written last: without it the dataset does not exist",),
    )
    if not plan.start(context, dry_run=dry_run):
        return
    from sssflow.contracts.dataset import Role
    from sssflow.ingest import stage

    with working("pack") as watch:
        manifest = stage.run(experiment.ingest, source, out, progress=_cases(watch))
    facts = {role.value: f"{len(manifest.with_role(role))} cases" for role in Role}
    path = out / "manifest.json"
    then = following(config, settings, "train", path, "RUN", "--section", "warmup")
    finish(path, facts, [then])


@app.command()
def phantoms(
    context: typer.Context,
    out: OutArgument = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML with the keys of --print-config.")
    ] = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Draw procedural scans with true masks into OUT, in the layout of a real data set."""
    from sssflow.ingest.phantoms.config import PhantomConfig

    drawn = load_config(PhantomConfig, config, settings or ())
    if print_config:
        show_config(drawn)
        return
    out = need(out, "OUT", "the folder for the phantoms")
    does = f"draws {drawn.patients} patients ({drawn.kind}), seed {drawn.seed}"
    if not Plan("data phantoms", does, out).start(context, dry_run=dry_run):
        return
    from sssflow.ingest.phantoms import stage

    with working("phantoms"):
        summary = stage.run(drawn, out)
    facts = {"patients": len(summary.patients), "without masks": len(summary.unlabelled)}
    finish(out, facts, [quoted("sssflow", "data", "pack", out, "DATASET")])


@app.command()
def push(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Scans, a bundle, or any other folder.")
    ],
    address: StoreAddress,
    dry_run: DryRunOption = False,
) -> None:
    """Copy FOLDER to S3, every file checked there, and publish it by a manifest of digests."""
    from sssflow.storage.places import carried_files, open_place, push_tree

    _require_store(address)
    with readable(source):
        found = source.is_dir() and carried_files(source)
    if not found:
        raise DataError(
            "There are no files to copy.",
            where=source,
            expected="a folder with files; hidden ones are left out",
            action="Check the path; an unmounted disk looks like this too.",
        )
    links = sorted(p for p in source.rglob("*") if p.is_symlink() and not p.name.startswith("."))
    if links:
        raise DataError(
            "Links are not copied: what they lead to would be missing there.",
            where=source,
            expected="files and folders",
            found=f"{len(links)} link(s), for example {links[0].relative_to(source)}",
            action=f"Push a copy without links: {quoted('cp', '-rL', source, 'COPY')}",
        )
    plan = Plan(
        "data push",
        f"copies every file to {address}, then the manifest",
        None,
        {"folder": source},
        ("files that are there with the same digest are not sent again",),
    )
    if not plan.start(context, dry_run=dry_run):
        return
    with working("push"):
        tree = push_tree(source, open_place(address))
    size_mb = sum(ref.size_bytes for ref in tree.files) / 1e6
    terminal = console()
    terminal.print(f"[bold]done[/bold]: {address}")
    terminal.print(f"  {len(tree.files)} files, {size_mb:.1f} MB, digest {tree.digest}")
    then = quoted("sssflow", "pipeline", "submit", "--data", address)
    terminal.print(f"next: {then} --host HOST --image IMAGE", markup=False)


@app.command()
def sweep(
    address: StoreAddress,
    older_than_h: Annotated[
        float,
        typer.Option(
            "--older-than-h", min=0, help="Hours; a younger upload may still be under way."
        ),
    ] = 24.0,
) -> None:
    """Abort unfinished uploads below S3: killed processes left them, and the store bills them."""
    from sssflow.storage.s3 import S3Store
    from sssflow.storage.s3_calls import S3Address

    _require_store(address)
    swept = S3Store().sweep_uploads(S3Address.parse(address), older_than_s=3600 * older_than_h)
    uploads = "1 unfinished upload was" if swept == 1 else f"{swept} unfinished uploads were"
    console().print(f"[bold]done[/bold]: {uploads} aborted")


def _require_store(address: str) -> None:
    if not address.startswith("s3://"):
        raise UsageError(
            "This is no address in an object store.",
            where=address,
            expected="s3://BUCKET/PREFIX",
            action="Correct the address; a folder of this machine needs no such step.",
        )


def require_scans(source: Path, layout: str) -> None:
    """Say what is expected where there is nothing, before a long run begins.

    Raises:
        DataError: `source` is no folder, or an empty one; the expected layout is shown. Or it may
            not be read.
    """
    with readable(source):
        if source.is_dir() and any(source.iterdir()):
            return
        empty, there = source.is_dir(), source.exists()
    from sssflow.ingest.layouts import LAYOUTS

    shown = [LAYOUTS[layout]] if layout in LAYOUTS else list(LAYOUTS.values())
    raise DataError(
        "There are no scans at this place.",
        where=source,
        expected="\n".join(["a folder like this:", *(f"[{s.name}]\n{s.tree}" for s in shown)]),
        found="an empty folder" if empty else "a file" if there else "nothing",
        action="Check the path; an unmounted disk looks like this too.",
    )


def _cases(watch: Watch) -> Callable[[int, int, str], None]:
    return lambda done, total, case_id: watch.show(case_id, (done, total))


def _tell(report: CheckReport) -> None:
    """Print what was found beside the problems."""
    terminal = console()
    for title, counts in (
        ("patients", report.patients_per_role),
        ("cases", report.cases_per_role),
        ("shapes s x h x w", report.shapes_shw),
        ("spacing mm", report.spacings_shw_mm),
        ("voxels per class", report.voxels_per_class),
    ):
        by_count = sorted(counts.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name}: {count}" for name, count in by_count[:_MOST_SHOWN])
        if len(by_count) > _MOST_SHOWN:
            shown += f", and {len(by_count) - _MOST_SHOWN} others"
        if shown:
            terminal.print(f"  {title:<17} {shown}", markup=False)
    if report.masks_unread:
        how = "of unlabelled patients; --set ingest.split.labelled=all reads them too"
        terminal.print(f"  masks not read    {report.masks_unread}, {how}", markup=False)
    for note in report.notes:
        terminal.print(f"  note: {note}", markup=False)
