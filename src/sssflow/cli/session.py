"""What all verbs share: common options, reading the experiment, the plan, the closing lines."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sssflow.configuration import Config, dump_yaml, load_config
from sssflow.errors import DataError, UnavailableError, UsageError
from sssflow.storage.names import require_text_name

if TYPE_CHECKING:
    from sssflow.experiment import ExperimentConfig

ManifestArgument = Annotated[
    Path | None,
    typer.Argument(metavar="MANIFEST", show_default=False, help="manifest.json of a dataset."),
]
OutArgument = Annotated[
    Path | None, typer.Argument(metavar="OUT", show_default=False, help="Folder to write to.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Experiment YAML; the same file serves every verb."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one key; may be repeated."),
]
PrintConfigOption = Annotated[
    bool, typer.Option("--print-config", help="Print the settings as YAML and stop.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check the inputs, say what would be done, and stop.")
]


def console() -> Console:
    """Where results are told (standard output)."""
    return Console(highlight=False, soft_wrap=True)


def error_console() -> Console:
    """Where progress and errors are told (standard error)."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Session:
    """One call of the command line: its arguments, and where a traceback may be left."""

    out: Path | None = None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a verb is about to do.

    Attributes:
        verb: As typed, for example `data pack`.
        does: One sentence.
        reads: Name of each input to its path, which must exist.
        out: Folder that the verb writes to.
        notes: Further facts worth knowing before a long run.
        checks: Cheap looks into the inputs, without a model; each raises what the run would raise.
    """

    verb: str
    does: str
    out: Path | None
    reads: Mapping[str, Path] = field(default_factory=dict)
    notes: Sequence[str] = ()
    checks: Sequence[Callable[[], object]] = ()

    def start(self, context: typer.Context, *, dry_run: bool) -> bool:
        """Check the inputs, say the plan, and tell whether to go on.

        Raises:
            DataError: An input does not exist, or the name of `out` is not UTF-8.
            UsageError: `out` is a file.
            UnavailableError: `out` cannot be made.
            SssflowError: What a check raises.
        """
        for name, path in self.reads.items():
            with readable(path):
                there = path.exists()
            if not there:
                raise DataError(
                    f"{name} does not exist.",
                    where=path,
                    action=f"Check the path; `sssflow {self.verb} --help` says what it is.",
                )
        if self.out is not None:
            require_text_name(self.out)
            _require_room(self.out)
        for check in self.checks:
            check()
        terminal = console()
        terminal.print(f"[bold]sssflow {self.verb}[/bold]: {self.does}")
        facts = dict(self.reads) | ({"output": self.out} if self.out is not None else {})
        width = max(map(len, facts), default=0)
        for name, path in facts.items():
            terminal.print(f"  {name:<{width}}  {path}", markup=False)
        for note in self.notes:
            terminal.print(f"  {note}", markup=False)
        if dry_run:
            terminal.print(f"  dry run: {self._checked()}nothing was written")
            return False
        session = context.find_object(Session)
        if session is not None:
            session.out = self.out
        return True

    def _checked(self) -> str:
        if not self.reads:
            return ""
        if self.checks:
            return "the inputs are of the right kind, the rest is checked when it runs; "
        return "the paths exist, their contents are checked when it runs; "


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say of an input in words what the system says against a look at it.

    Raises:
        DataError: It may not be looked at, its name is too long, or the like.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            "The system does not let this be read.",
            where=path,
            found=error.strerror or error,
            action="Check the path, and that you may read it.",
        ) from None


def no_room(out: Path, found: object) -> UnavailableError:
    """What is said where the output folder cannot be made."""
    return UnavailableError(
        "The output folder cannot be made.",
        where=out,
        expected="a folder, or a place where one can be made",
        found=found,
        action="Choose another output folder, then run the same command again.",
    )


def _require_room(out: Path) -> None:
    """Refuse a file, and a place below one or in a closed folder; the disk may refuse later too."""
    try:
        if out.exists() and not out.is_dir():
            raise UsageError(
                "The output must be a folder, and this is a file.",
                where=out,
                action="Name a folder; one that is not there is made.",
            )
        nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
            kind = "a closed folder" if nearest.is_dir() else "a file"
            raise no_room(out, f"{kind}, {nearest}")
    except OSError as error:  # such as a name that is too long
        raise no_room(out, error.strerror) from None


def read_experiment(
    config: Path | None,
    settings: Sequence[str] | None,
    options: Mapping[str, str] | None = None,
) -> ExperimentConfig:
    """The experiment of `--config` and `--set`; the defaults where neither is given.

    `options` are short forms such as `--method`, each with its `key=value`; they win.
    """
    from sssflow.experiment import ExperimentConfig

    return load_config(ExperimentConfig, config, settings or (), options=options)


def show_config(config: Config) -> None:
    """Print settings as YAML that `--config` reads back."""
    console().print(dump_yaml(config), markup=False, end="")


def need(value: Path | None, name: str, what: str) -> Path:
    """The value of a positional argument that `--print-config` may leave out.

    Raises:
        UsageError: It is missing.
    """
    if value is None:
        raise UsageError(
            f"The argument {name} is missing.", expected=what, action="See the verb's --help."
        )
    return value


def finish(
    result: Path, facts: Mapping[str, object] | None = None, then: Sequence[str] = ()
) -> None:
    """Say where the result is, the figures that matter, and which command comes next."""
    terminal = console()
    terminal.print(f"[bold]done[/bold]: {result}")
    if facts:
        width = max(map(len, facts))
        for name, value in facts.items():
            terminal.print(f"  {name:<{width}}  {value}", markup=False)
    for i, command in enumerate(then):
        terminal.print(f"{'next:' if i == 0 else '     '} {command}", markup=False)


def following(config: Path | None, settings: Sequence[str] | None, *words: object) -> str:
    """The command line of a next step, with the options of this call that it needs too."""
    given: list[object] = [] if config is None else ["--config", config]
    for setting in settings or ():
        given += ["--set", setting]
    return quoted("sssflow", *words, *given)


def quoted(*words: object) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(str(word) for word in words)


def percent(share: float | None) -> str:
    """A share as per cent with one decimal; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"
