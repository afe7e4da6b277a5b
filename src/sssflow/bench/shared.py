"""What runs of one table share, each part in a folder named by all that it depends on.

The staged chain, SAM-2 after it saw the labelled cases, and the trainings: variants that change
the test alone (`flips`, `largest`) and the first network of `two` cost no training of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sssflow.bench.named_files import content_of, model_by_content, sam_by_content
from sssflow.bench.plan import RunOrder
from sssflow.storage.atomic import link_or_copy
from sssflow.storage.lock import locked
from sssflow.training.config import TrainConfig
from sssflow.training.methods.reads import own_sections, used_settings

_LOCK = ".shared-lock"
_LEFT_BEHIND = ("checkpoints", ".lock", _LOCK)


def same_work(order: RunOrder, other: RunOrder) -> bool:
    """Whether two orders differ in nothing that is read: equal models and equal figures."""
    return _work(order) == _work(other)


def _work(order: RunOrder) -> tuple[object, ...]:
    read = order.experiment.model_copy(update={"train": used_settings(order.experiment.train)})
    beside = tuple(used_settings(config) for config in order.beside)
    return order.dataset_digest, order.warmup_share, read.digest(), beside


def warmup_of(order: RunOrder) -> TrainConfig:
    """The supervised training that the chain of `order` begins with.

    Keys that it does not read beside the methods' sections stay: they name the chains, and so the
    trainings, that earlier versions made.
    """
    train = order.experiment.train
    steps = round(order.warmup_share * train.steps)
    return own_sections(train.model_copy(update={"method": "supervised", "steps": steps}))


def chain_name(order: RunOrder) -> str:
    """Name of the chain: warm-up, adaptation, prompts and masks of every role that is needed."""
    settings = order.experiment
    parts = [order.dataset_digest, warmup_of(order).digest(), settings.adapt.digest()]
    parts += [sam_by_content(settings.sam).digest(), settings.prompts.digest()]
    parts += [role.value for role in settings.pipeline.scored_roles]
    return _name([*parts, *_start_of(settings.train)])


def adapted_name(order: RunOrder) -> str:
    """Name of SAM-2's weights after it saw the labelled cases."""
    settings = order.experiment
    parts = [order.dataset_digest, settings.adapt.digest()]
    parts += [sam_by_content(settings.sam).digest()]
    return "sam2-" + _name(parts)


def training_name(order: RunOrder, config: TrainConfig) -> str:
    """Name of a training of `order`; the chain counts whether or not the method learns from it.

    Where it does not, its warm-up counts by the keys that the method itself reads.
    """
    settings = order.experiment
    if not settings.train.reads_masks:
        settings = settings.model_copy(update={"train": used_settings(settings.train)})
    chain = chain_name(order.model_copy(update={"experiment": settings}))
    parts = [order.dataset_digest, used_settings(config).digest(), chain]
    parts += [model_by_content(settings.generalist).digest()]
    return _name([*parts, *_start_of(config)])


def _start_of(config: TrainConfig) -> list[str]:
    """What the file that a student starts from holds; nothing where it starts from none.

    Beside the path, not in its place: a training keeps its settings as they were written and goes
    on with those alone.
    """
    content = content_of(config.network.sam2.weights)
    return [] if content is None else [content]


def new_trainings_first(orders: Sequence[RunOrder]) -> list[RunOrder]:
    """The orders, seed by seed; those whose trainings all stand before come last in their seed.

    Started beside the run that trains for them, they would hold a process that only waits.
    """
    seeds = list(dict.fromkeys(order.key.seed for order in orders))
    known: set[str] = set()
    late: set[str] = set()
    for order in orders:
        configs = (order.experiment.train, *order.beside)
        names = {training_name(order, config) for config in configs}
        if names <= known:
            late.add(order.key.name)
        known |= names
    return sorted(orders, key=lambda o: (seeds.index(o.key.seed), o.key.name in late))


@contextmanager
def held(folder: Path, what: str, say: Callable[[str], object]) -> Iterator[Path]:
    """Be the only process that makes `folder`; another one that does is waited for."""
    told = f"waiting for another run that makes the same {what}"
    with locked(folder / _LOCK, waiting=lambda: say(told)):
        yield folder


def link_files(source: Path, target: Path) -> None:
    """Give `target` the files of a finished training, without checkpoints, at no cost of room.

    Copies where the file system has no hard links. A call that was cut off is made good by the
    next one.

    Raises:
        UnavailableError: The disk is full, read-only or refuses access.
    """
    for path in sorted(source.rglob("*")):
        inner = path.relative_to(source)
        if path.is_file() and inner.parts[0] not in _LEFT_BEHIND:
            link_or_copy(path, target / inner)


def _name(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:16]
