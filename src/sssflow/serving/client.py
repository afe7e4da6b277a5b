"""A client of Triton that never hangs: deadlines on every call, bounded retries, bounded load.

Every inference is idempotent, so a call whose server went away is made again; a volume that is
under way while the server restarts is finished without a slice twice or missing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sssflow.errors import (
    DataError,
    InternalError,
    SssflowError,
    UnavailableError,
    UsageError,
)
from sssflow.serving.config import ClientConfig

Arrays = dict[str, NDArray[Any]]
R = TypeVar("R")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_GONE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_RESTRICTED = ("PERMISSION_DENIED", "UNAUTHENTICATED")


class TransportError(Exception):
    """What the transport says, before it is known whether it is final.

    Args:
        code: gRPC's name of the status.
        message: The server's own words.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}")


class Transport(Protocol):
    """One way to a server; used by many threads."""

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        request_id: str,
        deadline_s: float,
    ) -> Arrays:
        """One inference; raises `TransportError`."""

    def ready(self, model: str, deadline_s: float) -> bool:
        """Whether the model can be asked; raises `TransportError`."""

    def control(self, verb: str, model: str, deadline_s: float) -> None:
        """`load` or `unload` a model; raises `TransportError`."""

    def close(self) -> None:
        """Give connections back."""


@dataclass(frozen=True)
class Job:
    """One request of a series; `key` names it in the result."""

    key: int
    model: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]


class TritonClient:
    """See the top of this file. Safe to share between threads."""

    def __init__(self, config: ClientConfig | None = None) -> None:
        """Connect lazily: the first call finds out whether a server is there.

        Raises:
            UsageError: tritonclient is not installed.
        """
        self.config = config or ClientConfig()
        self._transport = _open(self.config.url, self.config)
        self._choice = threading.Lock()
        self._settled = self.config.fallback_url is None
        self._number, self._count = threading.Lock(), 0
        self._name = f"{random.getrandbits(48):012x}"

    def __enter__(self) -> TritonClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give connections back."""
        self._transport.close()

    def infer(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> Arrays:
        """Outputs by name.

        Raises:
            DataError: The server refuses the tensors, or does not know the model.
            UnavailableError: No server within `patience_s`, or no answer within the deadline.
            InternalError: The model failed.
        """
        self._settle()
        request_id = self._request_id()
        arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        return self._patiently(
            f"{model} at {self.config.url}",
            lambda: self._transport.infer(
                model, arrays, outputs, request_id, self.config.deadline_s
            ),
        )

    def run_all(
        self, jobs: Iterable[Job], *, note: Callable[[float], None] | None = None
    ) -> Iterator[tuple[int, Arrays]]:
        """Answers as they come, each job's exactly once; `concurrency` requests are under way.

        Jobs are drawn as they are needed, so that a long series needs little memory. The first
        failure ends the series; requests that were not sent yet are not sent any more. `note` is
        told the seconds of each request, from send to answer, by the thread that made it.

        Raises:
            The errors of `infer`.
        """

        def ask(job: Job) -> Arrays:
            start = time.perf_counter()
            found = self.infer(job.model, job.inputs, job.outputs)
            if note is not None:
                note(time.perf_counter() - start)
            return found

        waiting = iter(jobs)
        running: dict[Future[Arrays], int] = {}
        with ThreadPoolExecutor(self.config.concurrency, "triton") as pool:
            try:
                while True:
                    while len(running) < self.config.concurrency:
                        job = next(waiting, None)
                        if job is None:
                            break
                        future = pool.submit(ask, job)
                        running[future] = job.key
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
            finally:
                for future in running:
                    future.cancel()

    def ready(self, model: str) -> bool:
        """Whether the server is there and the model can be asked; does not wait for it."""
        try:
            return self._transport.ready(model, self.config.control_deadline_s)
        except TransportError:
            return False

    def wait_ready(self, models: Iterable[str]) -> None:
        """Return when all models can be asked.

        Raises:
            UnavailableError: Not within `patience_s`.
        """
        for model in models:

            def ask(name: str = model) -> None:
                if not self._transport.ready(name, self.config.control_deadline_s):
                    raise TransportError("UNAVAILABLE", f"model {name} is not ready")

            self._settle()
            self._patiently(f"{model} at {self.config.url}", ask)

    def load(self, model: str) -> None:
        """Load or reload a model.

        Raises:
            DataError: It does not load; the server goes on with the version that it had.
            UnavailableError: No server, or no answer within the deadline.
            UsageError: The server wants the admin key for this.
        """
        self._control("load", model)

    def unload(self, model: str) -> None:
        """Take a model away.

        Raises:
            UnavailableError: No server, or no answer within the deadline.
            UsageError: The server wants the admin key for this.
        """
        self._control("unload", model)

    def _control(self, verb: str, model: str) -> None:
        deadline_s = self.config.load_deadline_s
        try:
            self._transport.control(verb, model, deadline_s)
        except TransportError as error:
            if error.code in (*_GONE, *_RESTRICTED, "DEADLINE_EXCEEDED"):
                raise _final(error, f"{verb} {model}", deadline_s) from None
            raise DataError(
                f"The server cannot {verb} the model.", where=model, found=error.message[:800]
            ) from None

    def _settle(self) -> None:
        """Change to the fallback for good if nothing answers at `url` but at the fallback."""
        with self._choice:
            if self._settled or self.config.fallback_url is None:
                return
            other = _open(self.config.fallback_url, self.config)
            if not _answers(self._transport, self.config) and _answers(other, self.config):
                self._transport, other = other, self._transport
            other.close()
            self._settled = True

    def _patiently(self, where: str, call: Callable[[], R]) -> R:
        """Call again while the server is away or full, with growing pauses, jittered."""
        end, pause_s = time.monotonic() + self.config.patience_s, _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except TransportError as error:
                left_s = end - time.monotonic()
                if error.code not in _GONE or left_s <= 0:
                    raise _final(error, where, self.config.deadline_s) from None
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            time.sleep(min(pause_s * jitter, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _request_id(self) -> str:
        """Names a request in the server's log; the same in every try."""
        with self._number:
            self._count += 1
            return f"{self._name}-{self._count}"


def _answers(transport: Transport, config: ClientConfig) -> bool:
    try:
        transport.ready("", config.control_deadline_s)
    except TransportError as error:
        return error.code not in (*_GONE, "DEADLINE_EXCEEDED")
    return True


def _final(error: TransportError, where: str, deadline_s: float) -> SssflowError:
    """What a failure becomes that no further try will mend."""
    found = error.message[:800]
    if error.code == "DEADLINE_EXCEEDED":
        return UnavailableError(
            "The server did not answer in time.",
            where=where,
            expected=f"an answer within {deadline_s:g} s",
            found=found,
            action="Give it more time (deadline_s), or fewer requests at once.",
        )
    if error.code in (*_GONE, "CANCELLED"):
        return UnavailableError(
            "The server cannot be reached, or has no room.",
            where=where,
            found=found,
            action="Check the address, and whether the server is ready.",
        )
    if error.code in {"INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION"}:
        return DataError("The server refuses the request.", where=where, found=found)
    if error.code in _RESTRICTED:
        return UsageError(
            "The server restricts this interface.",
            where=where,
            found=found,
            action="Give the admin key, or an address in grpc:// where HTTP alone is closed.",
        )
    return InternalError("The served model failed.", where=where, found=f"{error.code}: {found}")


def _open(url: str, config: ClientConfig) -> Transport:
    from sssflow.serving import transport

    scheme, _, address = url.partition("://")
    headers = {}
    if config.admin_header is not None and config.admin_key is not None:
        headers[config.admin_header] = config.admin_key
    return (
        transport.GrpcTransport(address, headers)
        if scheme == "grpc"
        else (transport.HttpTransport(address, headers))
    )
