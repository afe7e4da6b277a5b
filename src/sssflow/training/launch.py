"""Starts the processes of one training with torchrun's own engine, and says how they ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sssflow.configuration import Config, dump_yaml
from sssflow.errors import (
    DataError,
    InternalError,
    InterruptedRun,
    SssflowError,
    UnavailableError,
    UsageError,
)
from sssflow.storage.atomic import write_atomically
from sssflow.training.config import TrainConfig

_KINDS: tuple[type[SssflowError], ...] = (UsageError, DataError, InternalError, InterruptedRun)
_LOG = logging.getLogger(__name__)
_GRACE_S = 30
"""Time from SIGTERM to SIGKILL for the processes that are left: enough for a checkpoint."""


@dataclass(frozen=True)
class Shape:
    """How many processes, and where they meet.

    Attributes:
        processes: On this machine.
        nodes: Machines in all.
        node: Number of this machine.
        master: `host:port` of machine 0, which all reach; unused with one machine.
        job: Name of the whole, the same on all machines.
        timeout_s: The longest wait for the other machines to come.
        pulse: File that somebody rewrites as long as the training is wanted; None: it is.
    """

    processes: int
    nodes: int = 1
    node: int = 0
    master: str = ""
    job: str = "sssflow"
    timeout_s: float = 600.0
    pulse: Path | None = None


def launch(module: str, arguments: Sequence[str], shape: Shape) -> None:
    """Run `python -m module arguments` in every process, with RANK and WORLD_SIZE set, to the end.

    The first one that fails ends the others: SIGTERM, and after 30 s SIGKILL. SIGTERM and Ctrl-C
    to this process reach them all. There are no restarts: the same command resumes.

    Raises:
        UsageError: A process ended with 64; its own message stands in the log, as for the others.
        DataError: 65.
        InternalError: 70.
        InterruptedRun: 75, or this process was told to stop.
        UnavailableError: Any other code, a signal (out of memory is one), or the machines did not
            find each other.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _hush_torch()
    alone = shape.nodes == 1
    config = LaunchConfig(
        min_nodes=shape.nodes,
        max_nodes=shape.nodes,
        nproc_per_node=shape.processes,
        run_id=shape.job,
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="127.0.0.1:0" if alone else shape.master,
        rdzv_configs={"rank": shape.node, "timeout": int(shape.timeout_s)},
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        local_addr="127.0.0.1" if alone else None,
        shutdown_timeout=_GRACE_S,
    )
    try:
        with _handlers_restored(), wanted_while(shape.pulse):
            elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as failed:
        raise ending({rank: found.exitcode for rank, found in failed.failures.items()}) from None
    except SignalException as stopped:
        raise InterruptedRun(
            f"The training was stopped by {stopped.sigval.name}.",
            action="Run the same command again; it goes on from the newest checkpoint.",
        ) from None
    except (RendezvousError, RuntimeError, OSError) as error:
        raise UnavailableError(
            "The processes of the training did not find each other.",
            where=shape.master or "this machine",
            expected=f"{shape.nodes} machine(s) within {shape.timeout_s:g} s",
            found=f"{type(error).__name__}: {error}".splitlines()[0][:300],
            action="Look whether every machine came up, and run the same command again.",
        ) from None


def _hush_torch() -> None:
    """Drop its lines on a dead process: `ending` says the same, and what to do."""
    name = "torch.distributed.elastic.multiprocessing.api"
    logging.getLogger(name).setLevel(logging.CRITICAL)


def train_together(
    experiment: Config,
    section: str,
    dataset: Path,
    out: Path,
    shape: Shape,
    *,
    masks: Sequence[Path] = (),
    start: Path | None = None,
) -> None:
    """`stage.run` in every process of `shape`: the verb `train` with these arguments.

    Args:
        experiment: The settings, of which `section` names the training; its `processes` is the
            number in `shape`, all machines together.
        section: warmup, baseline or train.
        dataset: See `stage.run`, as the others.
        out: As above.
        shape: How many processes, and where they meet.
        masks: As above; they may be given to a method that reads none, and are then left out.
        start: As above.

    Raises:
        SssflowError: A process failed; see `launch`.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "experiment.yaml"
        settings.write_text(dump_yaml(experiment), encoding="utf-8")
        read = _read(experiment, section, masks)
        arguments = command_line(settings, section, dataset, out, masks=read, start=start)
        launch("sssflow.cli", arguments, shape)


def command_line(
    settings: Path,
    section: str,
    dataset: Path,
    out: Path,
    *,
    masks: Sequence[Path] = (),
    start: Path | None = None,
) -> list[str]:
    """The verb `train` with its arguments, for the settings in a file; see `train_together`."""
    arguments = ["train", str(dataset), str(out), "--config", str(settings), "--section", section]
    for path in masks:
        arguments += ["--masks", str(path)]
    if start is not None:
        arguments += ["--start", str(start)]
    return arguments


def node_command(
    experiment: Config,
    section: str,
    dataset: Path,
    out: Path,
    *,
    masks: Sequence[Path] = (),
    start: Path | None = None,
) -> list[str]:
    """What each of several machines runs; see `train_together`. The settings lie beside `out`."""
    settings = out.parent / f".{out.name}.yaml"
    write_atomically(settings, lambda file: file.write(dump_yaml(experiment).encode()))
    read = _read(experiment, section, masks)
    arguments = command_line(settings, section, dataset, out, masks=read, start=start)
    return ["python", "-m", "sssflow.cli", *arguments]


def _read(experiment: Config, section: str, masks: Sequence[Path]) -> Sequence[Path]:
    """The masks that the training of `section` learns from."""
    training: TrainConfig = getattr(experiment, section)
    return masks if training.reads_masks else ()


@contextmanager
def wanted_while(pulse: Path | None, patience_s: float = 300.0) -> Iterator[None]:
    """Send SIGTERM to this process when nobody has rewritten `pulse` for `patience_s` seconds.

    Its text is compared, not its time: clocks of machines differ. A file that cannot be read counts
    as not rewritten.
    """
    if pulse is None:
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(pulse, patience_s, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(pulse: Path, patience_s: float, over: threading.Event) -> None:
    last, seen = "", time.monotonic()
    while not over.wait(min(10.0, patience_s / 5)):
        text = last
        with suppress(OSError, UnicodeDecodeError):
            text = pulse.read_text(encoding="ascii")
        if text != last:
            last, seen = text, time.monotonic()
        elif time.monotonic() - seen > patience_s:
            _LOG.warning("%s stood still for %g s: the training is not wanted", pulse, patience_s)
            os.kill(os.getpid(), signal.SIGTERM)
            return


def ending(codes: dict[int, int]) -> SssflowError:
    """The error of processes that ended with these exit codes, by rank (negative: by a signal).

    A person's business goes before what may be tried again, and a cause before what followed.
    """
    for kind in _KINDS:
        ranks = sorted(rank for rank, code in codes.items() if code == kind.exit_code)
        if ranks:
            return kind(
                f"Process {ranks[0]} of the training ended with exit code {kind.exit_code}.",
                action="Its own message is above."
                if kind is not InterruptedRun
                else "Run the same command again; it goes on from the newest checkpoint.",
            )
    # Those that were ended because of another one, or missed it, are not the cause.
    after = (-signal.SIGTERM, UnavailableError.exit_code)
    rank, code = min(codes.items(), key=lambda found: (found[1] in after, found[0]))
    found = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return UnavailableError(
        f"Process {rank} of the training ended before its time.",
        found=found,
        action="Run the same command again; it goes on from the newest checkpoint. If SIGKILL "
        "comes again, the machine may be short of memory: use smaller batches.",
    )


@contextmanager
def _handlers_restored() -> Iterator[None]:
    """Torchrun takes over the signals and does not give them back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            try:
                signal.signal(number, handler)
            except ValueError:  # not the main thread: torchrun took nothing over either
                break
