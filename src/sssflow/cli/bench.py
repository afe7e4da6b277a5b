"""`sssflow bench`: many runs of one protocol, one table."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sssflow.cli.progress import working
from sssflow.cli.session import (
    DryRunOption,
    OutArgument,
    Plan,
    PrintConfigOption,
    SetOption,
    console,
    finish,
    need,
    quoted,
    show_config,
)
from sssflow.errors import SssflowError, UsageError

if TYPE_CHECKING:
    from sssflow.bench.config import BenchConfig
    from sssflow.bench.protocol import Protocol
    from sssflow.contracts.bench import RunKey

_LOG = logging.getLogger(__name__)


def bench(
    context: typer.Context,
    out: OutArgument = None,
    protocol: Annotated[
        str, typer.Option("--protocol", "-p", help="Name of a protocol, or the path of a YAML.")
    ] = "phantoms-lite",
    labelled: Annotated[
        str, typer.Option(help="Label counts, as 3,7 (or shares, as 0.1); default: the protocol's.")
    ] = "",
    methods: Annotated[
        str, typer.Option(help="Methods, as supervised,mean_teacher.")
    ] = "supervised,mean_teacher,unimatch_v2",
    variants: Annotated[
        str, typer.Option("--variants", "--variant", help="Variants; a+b joins two.")
    ] = "default",
    seeds: Annotated[str, typer.Option(help="Seeds, one run each.")] = "1,2,3",
    source: Annotated[Path | None, typer.Option(help="Folder of scans.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="manifest.json of a dataset packed with every label.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option(help="Add the supervised runs that every row is compared with.")
    ] = True,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Runs at a time.")] = 1,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of each run; 0: the cores divided.")
    ] = 0,
    collected: Annotated[
        Path | None,
        typer.Option(
            "--collect",
            metavar="FILE.tar",
            help="Afterwards, also if runs failed: tables, results, logs and the best small model.",
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Show protocols, variants and methods, and stop.")
    ] = False,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train and measure METHODS x VARIANTS x label counts x SEEDS; OUT/table.md, OUT/table.csv."""
    from sssflow.bench.config import BenchConfig
    from sssflow.bench.protocol import load_protocol
    from sssflow.configuration import parse_config

    if listing:
        _list()
        return
    chosen = load_protocol(protocol)
    if print_config:
        show_config(chosen)
        return
    wanted = {
        "labelled": _values(labelled, "--labelled"),
        "methods": _words(methods),
        "variants": _words(variants),
        "seeds": _values(seeds, "--seeds"),
        "baseline": baseline,
        "settings": settings or [],
        "parallel": parallel,
        "threads": threads,
    }
    config = parse_config(BenchConfig, wanted, source="sssflow bench")
    _run(context, chosen, config, need(out, "OUT", "the folder for runs and tables"), dry_run,
         {"source": source, "dataset": dataset}, collected)  # fmt: skip


def _run(
    context: typer.Context,
    protocol: Protocol,
    config: BenchConfig,
    out: Path,
    dry_run: bool,
    places: dict[str, Path | None],
    collected: Path | None,
) -> None:
    from sssflow.bench import stage
    from sssflow.bench.collect import require_tar

    if collected is not None:
        require_tar(collected)
    keys = stage.plan(protocol, config)
    reads = {name: path for name, path in places.items() if path is not None}
    _check_places(protocol, reads)
    shown = Plan(
        "bench",
        f"{protocol.name}: {len(keys)} runs, {config.parallel} at a time",
        out,
        reads,
        (
            protocol.summary,
            *_notes(keys, protocol),
            "if it is stopped, the same command goes on from there",
        ),
    )
    if not shown.start(context, dry_run=dry_run):
        return
    with collecting(out, collected), working(f"bench {protocol.name}"):
        record = stage.run(protocol, config, stage.Inputs(**places), out)
    finish(
        out / stage.TABLE_FILE,
        {"runs": f"{len(record.results)} of {len(keys)}", "CSV": out / stage.CSV_FILE},
        [quoted("cat", out / stage.TABLE_FILE)],
    )


@contextlib.contextmanager
def collecting(out: Path, archive: Path | None) -> Iterator[None]:
    """Pack `out` afterwards, after a failure too if there is a table; the failure then counts.

    What hinders the packing is then told beside it.
    """
    from sssflow.bench.collect import collect

    try:
        yield
    except SssflowError:
        if archive is not None:
            try:
                collect(out, archive)
            except SssflowError as error:
                _LOG.warning("%s was not written.\n%s", archive, error.describe())
        raise
    if archive is not None:
        collect(out, archive)


def _check_places(protocol: Protocol, reads: dict[str, Path]) -> None:
    wanted = 0 if protocol.source == "phantoms" and "dataset" not in reads else 1
    if len(reads) != wanted:
        raise UsageError(
            "The benchmark needs its data from one place.",
            expected="--source FOLDER or --dataset MANIFEST" if wanted else "neither: it draws",
            found=", ".join(f"--{name}" for name in reads) or "neither",
            action="Give the one that has your scans; `sssflow bench --list` says what each "
            "protocol reads."
            if wanted
            else "Leave them out, or choose a protocol of real scans by --protocol.",
        )


def _notes(keys: Sequence[RunKey], protocol: Protocol) -> list[str]:
    groups: dict[tuple[str, str, int | float], list[int]] = {}
    for key in keys:
        groups.setdefault((key.method, key.variant, key.labelled), []).append(key.seed)
    return [
        f"{method}, {variant}, {labelled:g} labelled, seeds {', '.join(map(str, seeds))}"
        for (method, variant, labelled), seeds in groups.items()
    ] + [f"selection: {protocol.selection}"]


def _list() -> None:
    from sssflow.bench.protocol import load_protocol, protocol_names
    from sssflow.bench.variants import shipped_variants
    from sssflow.training.methods.registry import METHODS

    terminal = console()
    terminal.print("[bold]protocols[/bold]")
    for name in protocol_names():
        found = load_protocol(name)
        counts = ", ".join(f"{count:g}" for count in found.labelled)
        line = f"  {name}: {found.summary} Labelled {found.unit}: {counts}. "
        terminal.print(f"{line}Selection: {found.selection}.", markup=False)
    terminal.print("[bold]variants[/bold]")
    for name, variant in shipped_variants().items():
        terminal.print(f"  {name}: {variant.summary}", markup=False)
    terminal.print(f"[bold]methods[/bold]\n  {', '.join(METHODS)}")


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _values(text: str, option: str) -> list[int | float]:
    """Numbers between commas.

    Raises:
        UsageError: Something between the commas is no number.
    """
    values: list[int | float] = []
    for part in _words(text):
        try:
            values.append(int(part) if part.lstrip("+-").isdigit() else float(part))
        except ValueError:
            raise UsageError(
                f"{option} needs numbers between commas.",
                expected="for example 3,7",
                found=text,
                action="Write the numbers without brackets.",
            ) from None
    return values
