"""The networks of a run, compiled by torch for the training steps alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sssflow.networks.base import SegmentationNet

_LOG = logging.getLogger(__name__)
_PARTS = ("features", "head")


class CompiledNetworks:
    """A context: inside, `features` and `head` of every network run as torch compiled them.

    Outside they run as they are written, so that validation volumes of many sizes compile nothing.
    Weights and their names stay as they are. Every shape is compiled once, when it first comes. A
    part that cannot be compiled here (no C compiler, an operation that torch does not know) runs
    as it is written from then on, and the log says so once.
    """

    def __init__(self, modules: nn.ModuleDict) -> None:
        """Take over the networks of `modules`; nothing is compiled yet."""
        from torch._dynamo.exc import TorchDynamoException  # a second, for runs that compile alone

        self._parts = [
            _Part(net, name, TorchDynamoException)
            for net in modules.values()
            if isinstance(net, SegmentationNet)
            for name in _PARTS
        ]

    def __enter__(self) -> None:
        """See the class."""
        for part in self._parts:
            part.inside = True

    def __exit__(self, *_: object) -> None:
        """See the class."""
        for part in self._parts:
            part.inside = False


class _Part:
    """Stands in for one method of one network."""

    def __init__(self, net: SegmentationNet, name: str, refusal: type[Exception]) -> None:
        self.inside = False
        self._refusal = refusal
        self._name = f"{type(net).__name__}.{name}"
        self._written: Callable[[Any], Any] = getattr(net, name)
        self._compiled: Callable[[Any], Any] | None = torch.compile(self._written, dynamic=False)
        setattr(net, name, self)

    def __call__(self, value: Any) -> Any:
        if not self.inside or self._compiled is None:
            return self._written(value)
        try:
            return self._compiled(value)
        except self._refusal as error:
            # Raised while compiling: nothing has been computed or drawn yet.
            _LOG.warning(
                "%s is not compiled here and runs as written: %s", self._name, _line(error)
            )
            self._compiled = None
            return self._written(value)


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
