"""A Triton server on this machine: start, wait until the models are ready, stop.

The state of a server is a folder: `server.json` (process, ports, models) and `server.log`. Whoever
finds `server.json` can ask for the status or stop the server; nothing else is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from sssflow.contracts.base import Contract
from sssflow.contracts.model_repository import REPOSITORY_FILE, ModelRepository
from sssflow.errors import DataError, UnavailableError, UsageError
from sssflow.serving.direct import fetch
from sssflow.serving.environment import TritonEnvironment
from sssflow.storage.atomic import disk_errors
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import verified_path

_LOG = logging.getLogger(__name__)
STATE_FILE = "server.json"
LOG_FILE = "server.log"
_ASK_TIMEOUT_S = 2.0
_POLL_S = 0.1
_KILL_AFTER_S = 10.0


class ServerState(Contract):
    """A running server; `started` tells it from a later process with the same number."""

    schema_name: ClassVar[str] = "sssflow.triton_server"

    pid: int
    started: str
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    repository: str
    models: tuple[str, ...]

    @property
    def grpc_url(self) -> str:
        """For a client."""
        return f"grpc://{self.host}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """For a client."""
        return f"http://{self.host}:{self.http_port}"


@dataclass(frozen=True)
class ServerOptions:
    """How the server runs.

    Attributes:
        host: Address to listen on.
        ports: HTTP, gRPC, metrics; 0: a free one.
        exit_timeout_s: How long a stop waits for requests under way.
        admin_key: Value that the header `sssflow-admin-key` must have on the interfaces that
            change the server (models, shared memory, logging, trace); None: they are open. Triton
            takes it on its command line alone, which every user of the machine can read.
        extra: Further options of `tritonserver`.
    """

    host: str = "127.0.0.1"
    ports: tuple[int, int, int] = (0, 0, 0)
    exit_timeout_s: int = 30
    admin_key: str | None = field(default=None, repr=False)
    extra: tuple[str, ...] = ()


ADMIN_HEADER = "sssflow-admin-key"
ADMIN_INTERFACES = (
    "shared-memory",
    "model-repository",
    "model-config",
    "statistics",
    "trace",
    "logging",
)


def up(
    environment: TritonEnvironment,
    repository: Path,
    state: Path,
    *,
    options: ServerOptions = ServerOptions(),
    timeout_s: float = 300.0,
) -> ServerState:
    """Start a server and return when every model of the repository is ready.

    Args:
        environment: The installed server.
        repository: Folder with `repository.json`.
        state: Folder for `server.json` and `server.log`.
        options: Ports and so on.
        timeout_s: How long models may take to load.

    Raises:
        DataError: The repository cannot be read, a file of it is missing or changed, or a model
            of it does not load.
        UsageError: A server of this state folder is running already.
        UnavailableError: The server is not ready in time; it was stopped.
    """
    models = verified_models(repository)
    if status(state) is not None:
        raise UsageError("A server is running already.", where=state, action="Stop it first.")
    http, grpc, metrics = _ports(options)
    words = _words(environment, repository, models, options, (http, grpc, metrics))
    process = _start(words, _variables(environment, state), state)
    running = ServerState(
        pid=process.pid,
        started=_started(process.pid),
        host=options.host,
        http_port=http,
        grpc_port=grpc,
        metrics_port=metrics,
        repository=str(repository.absolute()),
        models=models,
    )
    try:
        save_contract(running, state / STATE_FILE)
        _wait_ready(process, running, state, timeout_s)
    except BaseException:
        _end_process(process.pid, options.exit_timeout_s)
        (state / STATE_FILE).unlink(missing_ok=True)
        raise
    return running


def verified_models(repository: Path) -> tuple[str, ...]:
    """Names of the models of a repository whose files were just checked.

    Triton waits for ever for a Python model whose file is missing.

    Raises:
        DataError: The repository cannot be read, or a file of it is missing or changed.
    """
    described = load_contract(ModelRepository, repository / REPOSITORY_FILE)
    for model in described.models:
        for ref in model.files:
            verified_path(ref, base=repository)
    return tuple(model.name for model in described.models)


def status(state: Path) -> ServerState | None:
    """The server of a state folder; None if it does not run (any more)."""
    if not (state / STATE_FILE).is_file():
        return None
    found = load_contract(ServerState, state / STATE_FILE)
    return found if _started(found.pid) == found.started else None


def down(state: Path, *, exit_timeout_s: int = 30) -> bool:
    """Stop the server of a state folder: SIGTERM, time for requests under way, SIGKILL.

    Returns:
        Whether there was one.
    """
    found = status(state)
    if found is not None:
        _end_process(found.pid, exit_timeout_s)
    with contextlib.suppress(NotADirectoryError):
        (state / STATE_FILE).unlink(missing_ok=True)
    return found is not None


def ready_models(server: ServerState) -> dict[str, bool]:
    """Which models answer that they are ready."""
    return {name: _ok(f"{server.http_url}/v2/models/{name}/ready") for name in server.models}


def _start(words: list[str], variables: dict[str, str], state: Path) -> subprocess.Popen[bytes]:
    with disk_errors(state):
        state.mkdir(parents=True, exist_ok=True)
        log = (state / LOG_FILE).open("wb")
    with log:
        return subprocess.Popen(  # noqa: S603 - our own words, no shell
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )


def _words(
    environment: TritonEnvironment,
    repository: Path,
    models: Sequence[str],
    options: ServerOptions,
    ports: tuple[int, int, int],
) -> list[str]:
    words = [
        str(environment.binary),
        f"--model-repository={repository.absolute()}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={options.exit_timeout_s}",
        f"--backend-directory={environment.backends}",
        "--allow-gpu-metrics=false",
        f"--http-address={options.host}",
        f"--grpc-address={options.host}",
        f"--metrics-address={options.host}",
    ]
    for name, port in zip(("http", "grpc", "metrics"), ports, strict=True):
        words.append(f"--{name}-port={port}")
    if options.admin_key is not None:
        rule = f"{','.join(ADMIN_INTERFACES)}:{ADMIN_HEADER}={options.admin_key}"
        words += [f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"]
        _LOG.warning(
            "Triton takes the admin key on its command line alone: "
            "other users of this machine can read it (ps)."
        )
    return [*words, *options.extra]


def _variables(environment: TritonEnvironment, state: Path) -> dict[str, str]:
    """The server sees nothing of the caller's environment: no credential, no PYTHONPATH."""
    return {
        # The stub takes its modules from the first `python3` on the PATH.
        "PATH": f"{environment.python.parent}:/usr/local/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": ":".join(map(str, environment.libraries)),
        "HOME": str(state),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _ports(options: ServerOptions) -> tuple[int, int, int]:
    """The wanted ports, and free ones for zeros (all held open until all are found)."""
    with contextlib.ExitStack() as held:
        found = []
        for wanted in options.ports:
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.host, wanted))
            except OSError as error:
                raise UnavailableError(
                    "The server cannot listen there.",
                    where=f"{options.host}:{wanted}",
                    found=error.strerror,
                    action="Choose another port, or 0 for a free one.",
                ) from None
            found.append(int(probe.getsockname()[1]))
    return found[0], found[1], found[2]


def _wait_ready(
    process: subprocess.Popen[bytes], server: ServerState, state: Path, timeout_s: float
) -> None:
    end = time.monotonic() + timeout_s
    while True:
        if process.poll() is not None:
            raise DataError(
                "The server did not start.",
                where=state / LOG_FILE,
                found=_reason(state / LOG_FILE) or f"exit code {process.returncode}",
                action="Read the log; write the repository again if a model of it is broken.",
            )
        if all(ready_models(server).values()):
            return
        if time.monotonic() > end:
            raise UnavailableError(
                "The models were not ready in time.",
                where=state / LOG_FILE,
                expected=f"ready within {timeout_s:g} s",
                found=", ".join(n for n, ready in ready_models(server).items() if not ready),
            )
        time.sleep(_POLL_S)


def _reason(log: Path) -> str:
    """The server's own last words on what failed."""
    lines = log.read_text("utf-8", errors="replace").splitlines()
    told = [line for line in lines if re.match(r"error:|E\d{4} ", line)]
    return " ".join(told)[-800:]


def _ok(url: str) -> bool:
    try:
        fetch(url, direct=True, timeout_s=_ASK_TIMEOUT_S)
    except OSError:
        return False
    return True


def _started(pid: int) -> str:
    """When a living process was started, in ticks since boot; empty for one that is not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in {"Z", "X"} else fields[19]


def _end_process(pid: int, exit_timeout_s: int) -> None:
    started = _started(pid)
    for sign, wait_s in ((signal.SIGTERM, exit_timeout_s + _KILL_AFTER_S), (signal.SIGKILL, 10.0)):
        end = time.monotonic() + wait_s
        with contextlib.suppress(ProcessLookupError):
            if _started(pid) == started:
                # The session holds the stubs of the Python models too.
                os.killpg(pid, sign) if sign is signal.SIGKILL else os.kill(pid, sign)
        while started and _started(pid) == started and time.monotonic() < end:
            time.sleep(_POLL_S)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
