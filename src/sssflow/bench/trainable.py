"""Whether every method of a benchmark can train the protocol's network, asked before any run."""

from __future__ import annotations

from collections.abc import Iterable

from sssflow.contracts.bench import RunKey
from sssflow.errors import UsageError
from sssflow.networks.registry import build_network
from sssflow.training.config import AugmentationConfig, OptimiserConfig, TrainConfig
from sssflow.training.methods.registry import build_method
from sssflow.training.requirements import require_trainable

_OF_NO_MATTER = {
    "seed": 0,
    "augmentation": AugmentationConfig(),
    "optimiser": OptimiserConfig(),
}
"""Settings that no method is refused for."""


def require_trainings(trainings: Iterable[tuple[RunKey, TrainConfig]]) -> None:
    """Build every network with its method once, and hold them to what a training asks for.

    SAM-2's masks are not asked for: the chain makes them where a method learns from them.

    Raises:
        UsageError: A method cannot train its network; the key to set is named.
    """
    seen: set[str] = set()
    for key, config in trainings:
        alike = config.model_copy(update=_OF_NO_MATTER).digest()
        if alike in seen:
            continue
        seen.add(alike)
        try:
            _build(config)
        except UsageError as error:
            raise UsageError(
                f"{key.method}, {key.variant}: {error.what}",
                where=f"below train: {error.where}",
                expected=error.expected,
                found=error.found,
                action=f"{error.action} A protocol of one's own gives a method keys that the "
                f"others do not have (methods: {{{key.method}: ...}}).",
            ) from None


def _build(config: TrainConfig) -> None:
    # The data are not read yet: of classes there are as many as the settings name.
    named = (text for text in config.sss_in_loop.pcsw.tau_per_class if text.isdecimal())
    classes = 1 + max([1, *(int(text) for text in named if len(text) <= 3)])
    method = build_method(build_network(config.network, classes, seed=0), config)
    method.needs_masks = False
    require_trainable(method, config, ())
