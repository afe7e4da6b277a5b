"""One training in several processes: each works on its part of every batch, all hold one state.

Gradients are averaged by an explicit all-reduce after the backward pass, not by torch's
DistributedDataParallel: a method owns several networks and optimisers and calls `features` and
`head` by themselves, several times a step, under changing gradient switches; DDP's hooks want
one `forward` of one module. The networks here are small beside their activations, so that what
DDP gains by overlapping is small too.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sssflow.errors import DataError, UnavailableError, UsageError

T = TypeVar("T")

_BUCKET_VALUES = 1 << 24
"""Values that one all-reduce carries at most: 64 MiB in float32."""


@dataclass(frozen=True)
class World:
    """The processes of one training, as one of them sees them; `World()` is alone.

    Every method that talks to the others must be called by all of them in the same order, waits at
    most `timeout_s`, and does nothing where the process is alone.

    Attributes:
        rank: Number of this process; 0 writes.
        size: How many there are.
        local_rank: Number on this machine, and so of the GPU.
        local_size: How many there are on this machine.
        timeout_s: The longest wait for the others; longer than a share of a validation, or a
            checkpoint, takes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    timeout_s: float = 600.0
    _parent: int = field(default_factory=os.getppid, init=False, repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def seed_names(self) -> tuple[str, ...]:
        """What tells this process's random numbers from the others'; empty alone."""
        return () if self.size == 1 else (f"process {self.rank} of {self.size}",)

    @property
    def is_orphan(self) -> bool:
        """Whether the launcher is gone; nobody would then end or report this process."""
        return self.size > 1 and os.getppid() != self._parent

    def part(self, index: Tensor) -> Tensor:
        """This process's run of the samples (or clips) of a whole batch, equally long for all."""
        return index if self.size == 1 else index.view(self.size, -1)[self.rank]

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of what is done one by one: every `size`th, from its number on."""
        return items[self.rank :: self.size]

    def require_parts(self, where: str, samples: int, multiple: int = 1) -> None:
        """Refuse a batch that cannot be cut into equal parts of whole multiples.

        Raises:
            UsageError: It cannot; the nearest sizes that can are named.
        """
        unit = self.size * multiple
        if self.size > 1 and samples % unit:
            below = samples // unit * unit
            nearest = f"{below} or {below + unit}" if below else f"{unit}"
            raise UsageError(
                f"A batch cannot be cut into equal parts for {self.size} processes.",
                where=where,
                expected=f"a multiple of {unit}, for example {nearest}",
                found=samples,
                action="Change the batch, or start another number of processes.",
            )

    def mean(self, value: float) -> float:
        """The mean of all processes' values; NaN or infinite if one of them is."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        self._reduce(total)
        return float(total) / self.size

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether it is set anywhere."""
        if self.size == 1:
            return flags
        total = torch.tensor(flags, dtype=torch.int64)
        self._reduce(total)
        return tuple(bool(count) for count in total.tolist())

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.mean(0.0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, the same bits everywhere.

        A parameter without a gradient counts as zero where another process has one, and stays
        without where none has, so that its optimiser passes it over as it would alone.
        """
        if self.size == 1:
            return
        for bucket in _buckets(parameters):
            self._average_bucket(bucket)

    def average_statistics(self, modules: nn.Module) -> None:
        """Replace floating-point buffers (batch norm's running statistics) by their means.

        Modules in evaluation mode are left: teachers follow their students afterwards.
        """
        if self.size == 1:
            return
        found = [
            buffer
            for module in modules.modules()
            if module.training
            for buffer in module.buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        if found:
            flat = torch.cat([buffer.flatten().float() for buffer in found])
            self._reduce(flat)
            flat /= self.size
            means = torch.split(flat, [buffer.numel() for buffer in found])
            for buffer, value in zip(found, means, strict=True):
                buffer.copy_(value.view_as(buffer))

    def share(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """The first process's `state` (tensors and plain values) for all; others pass None.

        It travels as torch's own file, and is read with `weights_only=True` like a checkpoint.
        """
        if self.size == 1:
            return dict(state or {})
        packed = _packed(state or {}) if self.is_first else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(packed)])
        self._broadcast(length)
        if not self.is_first:
            packed = torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(packed)
        return dict(state or {}) if self.is_first else _unpacked(packed)

    def gather(self, state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every process's `state`, in the order of their numbers, for the first; [] for others."""
        if self.size == 1:
            return [dict(state)]
        packed = _packed(state)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(packed)
        self._reduce(lengths)
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
        padded[: len(packed)] = packed
        found = [torch.empty_like(padded) for _ in range(self.size if self.is_first else 0)]
        with _answered(self):
            dist.gather(padded, found or None, dst=0)
        return [
            _unpacked(part[:length]) for part, length in zip(found, lengths.tolist(), strict=False)
        ]

    def _average_bucket(self, bucket: list[nn.Parameter]) -> None:
        first = bucket[0]
        present = torch.tensor([p.grad is not None for p in bucket]).to(first)
        parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in bucket]
        flat = torch.cat([*parts, present])
        self._reduce(flat)
        sizes = [p.numel() for p in bucket]
        *means, counts = torch.split(flat / self.size, [*sizes, len(bucket)])
        for parameter, mean, count in zip(bucket, means, counts.tolist(), strict=True):
            if count > 0:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(mean.view_as(parameter))

    def _reduce(self, value: Tensor) -> None:
        with _answered(self):
            dist.all_reduce(value)

    def _broadcast(self, value: Tensor) -> None:
        with _answered(self):
            dist.broadcast(value, src=0)


ALONE = World()


@contextmanager
def joined(world: World, *, cuda: bool) -> Iterator[None]:
    """Be one of `world`'s processes inside; where they meet, torchrun has said in the environment.

    Values on the CPU travel by gloo, those on GPUs by NCCL; `cuda` asks for the second, where a
    GPU is here.

    Raises:
        UnavailableError: The others did not come within `timeout_s`.
    """
    if world.size == 1:
        yield
        return
    cuda = cuda and torch.cuda.is_available()
    if cuda and world.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(world.local_rank)
    with _answered(world):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method="env://",
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=world.timeout_s),
        )
    yield
    # Not after a failure: taking the group down can wait for a process that is gone.
    dist.destroy_process_group()


@contextmanager
def _answered(world: World) -> Iterator[None]:
    """Torch tells a dead or silent process by a RuntimeError of many texts."""
    try:
        yield
    except RuntimeError as error:
        raise UnavailableError(
            "Another process of this training ended, or gave no answer in time.",
            where=f"process {world.rank} of {world.size}",
            expected=f"an answer within {world.timeout_s:g} s",
            found=f"{type(error).__name__}: {error}".splitlines()[0][:300],
            action="Its own message says why; without one, a validation that takes longer needs a "
            "larger --timeout-s. The same command goes on from the newest checkpoint.",
        ) from None


def _packed(state: Mapping[str, Any]) -> Tensor:
    data = io.BytesIO()
    torch.save(dict(state), data)
    return torch.frombuffer(bytearray(data.getvalue()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> dict[str, Any]:
    data = io.BytesIO(packed.numpy().tobytes())
    try:
        return dict(torch.load(data, map_location="cpu", weights_only=True))
    except Exception as error:
        # Torch's refusals have types from a module that this house does not import, and their
        # words advise to load unsafely: they are not passed on.
        raise DataError(
            "The state of another process cannot be read.",
            expected="tensors and plain values",
            found=type(error).__name__,
        ) from None


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Runs of parameters of one type and device, bounded in size."""
    bucket: list[nn.Parameter] = []
    values = 0
    for parameter in parameters:
        full = bool(bucket) and values + parameter.numel() > _BUCKET_VALUES
        other = bool(bucket) and (
            parameter.dtype != bucket[0].dtype or parameter.device != bucket[0].device
        )
        if full or other:
            yield bucket
            bucket, values = [], 0
        bucket.append(parameter)
        values += parameter.numel()
    if bucket:
        yield bucket
