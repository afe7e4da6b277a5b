"""The command line: verbs, and what a failure becomes (message, exit code, traceback file)."""

from __future__ import annotations

import codecs
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

import sssflow
from sssflow.cli import (
    bench,
    data,
    demo,
    doctor,
    evaluate,
    export,
    infer,
    pipeline,
    predict,
    prompts,
    sam2,
    serve,
    train,
)
from sssflow.cli.processes import is_first, spoken_for
from sssflow.cli.session import Session, error_console, no_room
from sssflow.errors import InterruptedRun, SssflowError, UnavailableError

EXIT_USAGE = 64
EXIT_BUG = 70
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="sssflow",
    help="From a folder of scans, few of them with masks, to a measured and exported model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("prompts")(prompts.prompts)
app.command("infer")(infer.infer)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.add_typer(export.app, name="export")
app.command("bench")(bench.bench)
app.add_typer(sam2.app, name="sam2")
app.add_typer(serve.app, name="serve")
app.add_typer(pipeline.app, name="pipeline")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sssflow {sssflow.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Semi-supervised medical image segmentation with SAM-2."""


def main() -> None:
    """Entry point of the `sssflow` command."""
    _print_any_name(sys.stdout)
    sys.exit(run(sys.argv[1:]))


def _print_any_name(stream: object) -> None:
    """Let a stream print names of files that are no text in its encoding, as Latin-1 ones."""
    if isinstance(stream, io.TextIOWrapper):
        utf8 = codecs.lookup(stream.encoding).name == "utf-8"
        stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; messages go to standard error."""
    session = Session(arguments=tuple(arguments))
    command = typer.main.get_command(app)
    try:
        result = command.main(
            args=list(arguments), prog_name="sssflow", standalone_mode=False, obj=session
        )
    except SssflowError as error:
        # All processes of a training stop together; one of them says so.
        if is_first() or not isinstance(error, InterruptedRun):
            _say(f"{spoken_for()}{error.kind}: {error.describe()}")
        return error.exit_code
    except TyperException as error:
        if not arguments:
            return 0
        # Without a word: the help was shown, because a group of verbs was called alone.
        what = error.format_message() or "One of the commands above must follow."
        _say(f"usage error: {what}\n  next: add --help to see what is possible")
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        refusal = _refused(session, error)
        if refusal is None:
            return _bug(error, session)
        _say(f"{refusal.kind}: {refusal.describe()}")
        return refusal.exit_code
    if result == EXIT_INTERRUPTED:
        return _interrupted()
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    _say("interrupted: the same command starts this step again")
    return EXIT_INTERRUPTED


def _refused(session: Session, error: Exception) -> UnavailableError | None:
    """What to say where the system refused a path of the command line; None for a bug."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes):
        return None
    named = Path(os.fsdecode(error.filename)).absolute()
    if session.out is not None and _is_about(session.out, named):
        return no_room(session.out, error.strerror)
    if _is_folder(named):  # such as the working folder, which lies above every argument
        return None
    values = (part for text in session.arguments for part in (text, text.partition("=")[2]))
    for path in (Path(value) for value in values if value):
        if _is_about(path, named):
            return UnavailableError(
                "The system refuses a path of this command.",
                where=path,
                expected="one that can be read or made",
                found=error.strerror,
                action="Choose another path, or mend this one, then run the same command again.",
            )
    return None


def _is_about(path: Path, named: Path) -> bool:
    """Whether what the system refused is a path that is no folder, or lies around it.

    That is the path, its lock beside it, what should have been made in it, or a folder above it.
    """
    wanted = path.absolute()
    around = str(named).startswith(str(wanted)) or named in wanted.parents
    return around and not _is_folder(path)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - pathlib's raises at a name that is too long


def _bug(error: Exception, session: Session) -> int:
    """Keep the traceback in a file: a user needs the sentence, a developer needs the rest."""
    text = "".join(traceback.format_exception(error))
    folder = session.out if session.out is not None and session.out.is_dir() else None
    try:
        handle = tempfile.NamedTemporaryFile(
            "w", prefix="sssflow-traceback-", suffix=".txt", dir=folder, delete=False
        )
        with handle:
            handle.write(text)
        kept = str(Path(handle.name))
    except OSError:
        kept = ""
    summary = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    lines = [f"internal error: {summary}"]
    if kept:
        lines.append(f"  traceback: {kept}")
    lines.append("  next: this is a fault of sssflow; please report it with the traceback")
    _say("\n".join(lines))
    return EXIT_BUG


def _say(message: str) -> None:
    error_console().print(message, markup=False)


if __name__ == "__main__":
    main()
