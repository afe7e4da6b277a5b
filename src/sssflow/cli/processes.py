"""Several processes of one verb: how they are started, and how each finds its place.

Where they stand on several machines is said by options or by the variables that torchrun and
Kubeflow Trainer use (`PET_…`), so that one command serves every machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sssflow.errors import UsageError

if TYPE_CHECKING:
    from sssflow.training.distributed import World

ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        "--processes",
        min=1,
        help="Short for --set SECTION.processes=…: they share every batch, one per GPU.",
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(min=1, help="Longest wait of the processes for each other, in seconds."),
]
NodesOption = Annotated[
    int, typer.Option(min=1, envvar="PET_NNODES", help="Machines that share the processes.")
]
NodeRankOption = Annotated[
    int, typer.Option(min=0, envvar="PET_NODE_RANK", help="Number of this machine.")
]
MasterAddrOption = Annotated[
    str, typer.Option(envvar="PET_MASTER_ADDR", help="Name of machine 0, which all can reach.")
]
MasterPortOption = Annotated[
    int, typer.Option(min=1, max=65535, envvar="PET_MASTER_PORT", help="A free port there.")
]

PulseOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Stop with a checkpoint when FILE stands still for five minutes."
    ),
]


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun (or `launch`) started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def spoken_for() -> str:
    """How this process is named in its messages; empty where there is no other."""
    return f"process {os.environ['RANK']}: " if started_by_torchrun() else ""


def is_first() -> bool:
    """Whether this process tells what all of them know."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"


def place(timeout_s: float) -> World:
    """This process's place among those of the training; alone without torchrun."""
    from sssflow.training.distributed import World

    if not started_by_torchrun():
        return World()
    return World(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        timeout_s=timeout_s,
    )


@dataclass(frozen=True)
class Machine:
    """One of the machines of a training.

    Attributes:
        nodes: How many there are.
        node_rank: Number of this one.
        master_addr: Name of machine 0; unused with one machine.
        master_port: A free port there.
    """

    nodes: int = 1
    node_rank: int = 0
    master_addr: str = ""
    master_port: int = 29500


def start_again(
    arguments: Sequence[str],
    processes: int,
    here: Machine,
    timeout_s: float,
    pulse: Path | None = None,
) -> None:
    """Run the command line `arguments` in this machine's share of `processes`, to the end.

    Args:
        arguments: As typed, without the program's name.
        processes: On all machines together.
        here: This machine.
        timeout_s: The longest wait for the other machines.
        pulse: See `sssflow.training.launch.Shape`.

    Raises:
        UsageError: There are no arguments to repeat, or the machines cannot share the processes.
        SssflowError: A process failed (see `sssflow.training.launch.launch`).
    """
    from sssflow.training.launch import Shape, launch

    if not arguments:
        raise UsageError(
            "Only a command line can be started in several processes.",
            action="Start the program with torchrun, and give `stage.run` its `World`.",
        )
    nowhere = here.nodes > 1 and not here.master_addr
    if processes % here.nodes or here.node_rank >= here.nodes or nowhere:
        raise UsageError(
            "The machines cannot share the processes.",
            expected="equally many on each, a number below --nodes, and --master-addr",
            found=f"{processes} processes, {here}",
        )
    shape = Shape(
        processes // here.nodes,
        nodes=here.nodes,
        node=here.node_rank,
        master=f"{here.master_addr}:{here.master_port}",
        timeout_s=timeout_s,
        pulse=pulse,
    )
    launch("sssflow.cli", arguments, shape)
