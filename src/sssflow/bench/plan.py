"""Which runs a benchmark consists of, and the complete settings of each.

Later settings win: the protocol's base, then what a method differs in, then the variant, then the
user's own; label count, seed, method and rule of selection are the run's.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sssflow.bench.config import SUPERVISED, BenchConfig
from sssflow.bench.named_files import experiment_by_content, training_by_content
from sssflow.bench.protocol import Protocol
from sssflow.bench.variants import DEFAULT, find_variant
from sssflow.configuration import override_config
from sssflow.contracts.base import Record, Sha256
from sssflow.contracts.bench import RunKey
from sssflow.errors import UsageError
from sssflow.experiment import ExperimentConfig
from sssflow.training.config import TrainConfig

_SEED_STRIDE = 100_000
"""Between the seeds of networks that are averaged: beyond the seeds that tables ask for."""

_OF_THE_RUN = {
    "train.method": "--methods",
    "train.seed": "--seeds",
    "adapt.seed": "--seeds",
    "phantoms.seed": "--seeds",
    "train.selection": "the key selection of a protocol of one's own",
    "ingest.split.labelled": "--labelled",
    "warmup": "the same key below train, of whose steps the warm-up is a share (warmup_share)",
    "baseline": "the same key below train, which every method reads",
}
"""Keys and sections that every run sets itself or reads nowhere, and what says them instead."""


class RunOrder(Record):
    """Everything that one worker needs to know.

    `digest` names the work, not the place or the machine: equal digests, equal results.
    """

    key: RunKey
    protocol: str
    experiment: ExperimentConfig
    beside: tuple[TrainConfig, ...] = ()
    warmup_share: float
    dataset: Path
    dataset_digest: Sha256
    out: Path
    chains: Path
    trainings: Path
    threads: int = 0

    @property
    def digest(self) -> Sha256:
        """SHA-256 of key, settings and data; files of weights count by what they hold now."""
        named = {
            "experiment": experiment_by_content(self.experiment),
            "beside": tuple(map(training_by_content, self.beside)),
        }
        content = self.model_copy(update=named).model_dump(
            mode="json", include={"key", "experiment", "beside", "warmup_share", "dataset_digest"}
        )
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def run_keys(
    protocol: Protocol, config: BenchConfig, known_methods: Mapping[str, Any]
) -> tuple[RunKey, ...]:
    """All runs, seed by seed, supervised first, so that an early stop leaves whole comparisons.

    Raises:
        UsageError: An unknown method or variant, here or in the protocol, or no run at all.
    """
    _require_known(protocol.methods, known_methods)
    unknown = [name for name in config.methods if name not in known_methods]
    if unknown:
        raise UsageError(
            "There is no such method.",
            expected=" | ".join(known_methods),
            found=", ".join(unknown),
            action="`sssflow bench --list` shows the methods.",
        )
    pairs = _pairs(config)
    if not pairs:
        raise UsageError(
            "There is nothing to run.",
            where="--methods, --variants",
            expected=f"a method that the variant changes, or the variant {DEFAULT}",
            found=f"{SUPERVISED} alone, which trains and measures alike without "
            + ", ".join(config.variants),
            action=f"Add {DEFAULT} to --variants or a method to --methods, or leave out "
            "--no-baseline.",
        )
    return tuple(
        RunKey(method=method, variant=variant, labelled=labelled, seed=seed)
        for seed in dict.fromkeys(config.seeds)
        for labelled in dict.fromkeys(config.labelled or protocol.labelled)
        for method, variant in pairs
    )


def _require_known(
    sections: Mapping[str, Mapping[str, Any]], known_methods: Mapping[str, Any]
) -> None:
    """Refuse keys of a protocol for a method that there is not, and those that each run sets."""
    for name, section in sections.items():
        if name not in known_methods:
            near = difflib.get_close_matches(name, known_methods, n=1, cutoff=0.4)
            raise UsageError(
                "The protocol has keys for a method that there is not.",
                where=f"methods.{name}",
                expected=f"{near[0]}, perhaps" if near else " | ".join(known_methods),
                found=name,
                action="Correct the name; `sssflow bench --list` shows the methods.",
            )
        for key in section:
            if instead := _OF_THE_RUN.get(f"train.{key}"):
                raise UsageError(
                    "This key of the protocol changes nothing.",
                    where=f"methods.{name}.{key}",
                    expected=instead,
                    found=key,
                    action=f"Leave it out, or use {instead}.",
                )


def require_settable(config: BenchConfig) -> None:
    """Refuse settings without effect: the table would say that every run was made with them.

    Raises:
        UsageError: There is one; what says it instead is named.
    """
    for text in config.settings:
        key = text.partition("=")[0]
        for name, instead in _OF_THE_RUN.items():
            if key == name or key.startswith(f"{name}."):
                raise UsageError(
                    "This setting changes nothing in a benchmark.",
                    where=f"--set {text}",
                    expected=instead,
                    found=key,
                    action=f"Leave it out, or use {instead}.",
                )


def baseline_variant(variant: str) -> str:
    """The variant of the supervised run that a run of `variant` is compared with."""
    return variant if find_variant(variant).changes_supervised else DEFAULT


def settings_of(protocol: Protocol, config: BenchConfig, key: RunKey) -> ExperimentConfig:
    """The complete settings of one run.

    Raises:
        UsageError: A key or value of a method, a variant or the user does not fit.
    """
    variant = find_variant(key.variant).set
    texts = [
        *(_text(f"train.{name}", value) for name, value in _own(protocol, key.method)),
        *(_text(name, value) for name, value in variant.items()),
        *config.settings,
        _text("train.method", key.method),
        _text("train.selection", protocol.selection),
        *(_text(f"{section}.seed", key.seed) for section in ("train", "adapt")),
    ]
    if protocol.source == "phantoms":
        texts.append(_text("phantoms.seed", key.seed))
    return override_config(protocol.experiment, texts)


def settings_beside(settings: ExperimentConfig, variant: str) -> tuple[TrainConfig, ...]:
    """The trainings of the networks that a variant averages with the first one.

    Raises:
        UsageError: A key or value of the variant does not fit.
    """
    found = []
    for number, keys in enumerate(find_variant(variant).beside, start=1):
        seed = _text("train.seed", settings.train.seed + _SEED_STRIDE * number)
        texts = [*(_text(name, value) for name, value in keys.items()), seed]
        found.append(override_config(settings, texts).train)
    return tuple(found)


def _pairs(config: BenchConfig) -> list[tuple[str, str]]:
    wanted = [(m, v) for v in config.variants for m in config.methods]
    needed = [(SUPERVISED, baseline_variant(v)) for v in config.variants]
    pairs = [*needed, *wanted] if config.baseline else wanted
    # A variant that does not touch supervised training would give the same run twice.
    return [
        pair
        for pair in dict.fromkeys(pairs)
        if pair[0] != SUPERVISED or pair[1] == baseline_variant(pair[1])
    ]


def _own(protocol: Protocol, method: str) -> list[tuple[str, Any]]:
    """Dotted keys of a method's section, so that only they are replaced."""
    found: list[tuple[str, Any]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else name, inner)
        else:
            found.append((prefix, value))

    walk("", protocol.methods.get(method, {}))
    return found


def _text(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"
