"""What earlier steps left beside an output, so that the next command line can name it.

Files are known by what they hold, never by the name of their folder; what cannot be read is passed
over, for a proposal must not fail a step that succeeded.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sssflow.contracts.base import Contract, Sha256
from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.model import TrainedModel
from sssflow.contracts.prompts import PromptSet
from sssflow.contracts.weights import PromptableWeights
from sssflow.errors import SssflowError
from sssflow.storage.contracts import load_contract

_MOST_SEEN = 200

K = TypeVar("K", bound=Contract)


def adapted_to(dataset: Path, out: Path) -> Path | None:
    """The sam2.json beside `out` that was adapted to the labelled cases of `dataset`."""
    digest = _digest(DatasetManifest, dataset)
    return _beside(out, "sam2.json", PromptableWeights, lambda w: w.dataset_digest == digest)


def prompted_by(prompts: Path, out: Path) -> Path | None:
    """The model.json beside `out` whose coarse masks became `prompts`."""
    with contextlib.suppress(SssflowError):
        wanted = load_contract(PromptSet, prompts).model_digest
        return _beside(out, "model/model.json", TrainedModel, lambda m: m.digest == wanted)
    return None


def run_of(model: Path) -> Path | None:
    """The run.json of the run that holds `model` (RUN/model/model.json)."""
    run = model.parent.parent / "run.json"
    return run if model.parent.name == "model" and run.is_file() else None


def _digest(kind: type[Contract], path: Path) -> Sha256 | None:
    with contextlib.suppress(SssflowError):
        return load_contract(kind, path).digest
    return None


def _beside(out: Path, place: str, kind: type[K], fits: Callable[[K], bool]) -> Path | None:
    def fitting() -> Iterator[Path]:
        for path in sorted(itertools.islice(out.parent.glob(f"*/{place}"), _MOST_SEEN)):
            with contextlib.suppress(SssflowError):
                if fits(load_contract(kind, path)):
                    yield path

    with contextlib.suppress(OSError):
        return next(fitting(), None)
    return None
