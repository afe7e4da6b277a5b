"""The bench stage: datasets, runs, tables; the same call again goes on where it stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import ClassVar

import sssflow
from sssflow.bench.config import BenchConfig
from sssflow.bench.given import require_protocols_data
from sssflow.bench.named_files import ingest_by_content
from sssflow.bench.plan import (
    RunOrder,
    require_settable,
    run_keys,
    settings_beside,
    settings_of,
)
from sssflow.bench.pool import LOG_FILE, Pool
from sssflow.bench.protocol import Protocol
from sssflow.bench.published import published_rows
from sssflow.bench.run import RESULT_FILE, finished
from sssflow.bench.scores import group_rows, read_scores
from sssflow.bench.shared import new_trainings_first, same_work
from sssflow.bench.table import markdown, table_csv
from sssflow.bench.trainable import require_trainings
from sssflow.bench.variants import DEFAULT
from sssflow.contracts.base import Contract
from sssflow.contracts.bench import BenchRecord, RunFailure, RunKey, RunResult
from sssflow.contracts.dataset import DatasetManifest
from sssflow.errors import (
    DataError,
    InternalError,
    InterruptedRun,
    SssflowError,
    UnavailableError,
    UsageError,
)
from sssflow.evaluation.aggregate import Resampling
from sssflow.ingest import relabel
from sssflow.ingest import stage as ingest
from sssflow.ingest.phantoms import stage as phantoms
from sssflow.storage.atomic import write_text
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference
from sssflow.storage.lock import locked
from sssflow.training.config import TrainConfig
from sssflow.training.methods.registry import METHODS
from sssflow.training.requirements import require_readable

_LOG = logging.getLogger(__name__)
RECORD_FILE = "bench.json"
TABLE_FILE = "table.md"
CSV_FILE = "table.csv"
RUNS = "runs"
_ORIGIN_FILE = "origin.json"
_LOCK = ".lock"
_DRAWN, _SCANS = "phantoms", "scans"
_KINDS: tuple[type[SssflowError], ...] = (InternalError, DataError, UsageError, UnavailableError)


class _Origin(Contract):
    """What the dataset with all labels was packed from, and by which settings."""

    schema_name: ClassVar[str] = "sssflow.bench-origin"

    source: str
    packing: str
    phantoms: str


@dataclass(frozen=True)
class Inputs:
    """Where the data come from: a folder of scans, or a packed dataset; neither for phantoms."""

    source: Path | None = None
    dataset: Path | None = None


def plan(protocol: Protocol, config: BenchConfig) -> tuple[RunKey, ...]:
    """All runs, with the settings of each checked; nothing is read or written.

    Raises:
        UsageError: An unknown method or variant, settings that do not fit or that no run reads, or
            a method that cannot train the protocol's network.
    """
    require_settable(config)
    keys = run_keys(protocol, config, METHODS)
    trainings: list[tuple[RunKey, TrainConfig]] = []
    for key in keys:
        settings = settings_of(protocol, config, key)
        wanted = (settings.train, *settings_beside(settings, key.variant))
        trainings += [(key, train) for train in wanted]
    require_trainings(trainings)
    return keys


def run(protocol: Protocol, config: BenchConfig, inputs: Inputs, out: Path) -> BenchRecord:
    """Run what is missing of a benchmark and write `table.md`, `table.csv` and `bench.json`.

    Finished runs in `out` are taken over, interrupted ones go on from their checkpoint, failed
    ones are tried again. The tables are written anew after every run.

    Raises:
        UsageError: Settings or a dataset that do not fit the protocol, before `out` is touched; or
            data given where phantoms are drawn.
        DataError: The scans or the dataset cannot be used.
        UnavailableError: Another benchmark is running into `out`.
        InterruptedRun: SIGINT or SIGTERM; every running training has written a checkpoint.
        SssflowError: Some runs failed; the others and the tables are there. The kind is the
            gravest of the runs'.
    """
    keys = plan(protocol, config)
    if inputs.dataset is not None:
        given = load_contract(DatasetManifest, inputs.dataset)
        wanted = settings_of(protocol, config, keys[0]).ingest
        require_protocols_data(wanted, given, inputs.dataset)
        for key in keys:
            require_readable(settings_of(protocol, config, key).train, given)
    busy = UnavailableError(
        "Another benchmark is running into this folder.",
        where=out,
        action="Wait for it, or choose another output folder.",
    )
    # The folders of data and of runs are made anew or taken over without asking who reads them.
    with locked(out / _LOCK, refusal=busy):
        return _run(protocol, config, inputs, keys, out)


def _run(
    protocol: Protocol, config: BenchConfig, inputs: Inputs, keys: Sequence[RunKey], out: Path
) -> BenchRecord:
    datasets = _datasets(protocol, config, inputs, keys, out)
    orders = [_order(protocol, config, key, datasets, out) for key in keys]
    pool = Pool(config.parallel, config.poll_s)
    waiting = [o for o in new_trainings_first(orders) if not _is_finished(o, pool)]
    _LOG.info("%d of %d runs are there already", len(orders) - len(waiting), len(orders))

    def tabulate(_: RunOrder | None = None) -> BenchRecord:
        return _tabulate(protocol, config, orders, pool.failures, out)

    pool.run(waiting, tabulate)
    record = tabulate()
    if pool.stopped:
        raise InterruptedRun(
            f"The benchmark was stopped; {len(record.results)} of {len(orders)} runs are there.",
            where=out,
            action="Run the same command again; it goes on from there.",
        )
    if pool.failures:
        raise _gravest(pool.failures, len(orders), out)
    return record


def _datasets(
    protocol: Protocol, config: BenchConfig, inputs: Inputs, keys: Sequence[RunKey], out: Path
) -> dict[tuple[int | float, int], Path]:
    """(label count, seed) to manifest; one dataset with all labels serves every label count.

    Raises:
        UsageError: There are no scans, or the data that lie in `out` are of others.
        DataError: The scans cannot be used, or `ingest.copies` refuses an image under two roles.
    """
    found: dict[tuple[int | float, int], Path] = {}
    for key in keys:
        place = (key.labelled, key.seed)
        if place in found:
            continue
        part = f"-s{key.seed}" if protocol.source == "phantoms" else ""
        whole = inputs.dataset or _whole(protocol, config, inputs, key, out / "data" / f"all{part}")
        folder = out / "data" / f"l{key.labelled:g}{part}"
        relabel.run(whole, key.labelled, folder, settings_of(protocol, config, key).ingest)
        found[place] = folder / relabel.MANIFEST
    return found


def _whole(protocol: Protocol, config: BenchConfig, inputs: Inputs, key: RunKey, out: Path) -> Path:
    manifest = out / "dataset" / relabel.MANIFEST
    settings = settings_of(protocol, config, key)
    source = inputs.source
    if protocol.source == "phantoms":
        if source is not None:
            raise UsageError("This protocol draws its own scans.", where="source", found=source)
        source = out / _SCANS
    if source is None:
        raise UsageError(
            "There are no scans to run the protocol on.",
            expected="--source FOLDER of scans, or --dataset MANIFEST of a packed dataset",
            found="neither",
        )
    split = settings.ingest.split.model_copy(update={"labelled": "all", "labelled_slices": None})
    packing = settings.ingest.model_copy(update={"split": split})
    drawn = settings.phantoms.digest() if settings.phantoms is not None else "none"
    # Drawn scans lie below the benchmark's own folder, which may be moved.
    place = _DRAWN if protocol.source == "phantoms" else str(source.absolute())
    origin = _Origin(source=place, packing=ingest_by_content(packing).digest(), phantoms=drawn)
    if manifest.exists():
        _require_same_origin(origin, out)
        return manifest
    if protocol.source == "phantoms":
        phantoms.run(settings.require_phantoms(), source)
    save_contract(origin, out / _ORIGIN_FILE)
    ingest.run(packing, source, out / "dataset")
    return manifest


def _require_same_origin(wanted: _Origin, out: Path) -> None:
    """Refuse a dataset that lies here from other scans, or packed in another way."""
    if not (out / _ORIGIN_FILE).exists():  # packed by a version that kept no note of it
        return
    found = load_contract(_Origin, out / _ORIGIN_FILE)
    if wanted.source == _DRAWN and PurePath(found.source).name == _SCANS:  # as written before
        found = found.model_copy(update={"source": _DRAWN})
    if found == wanted:
        return
    moved = found.source != wanted.source
    raise UsageError(
        "The benchmark's folder holds data from another source."
        if moved
        else "The benchmark's folder holds data that other settings packed.",
        where=out,
        expected=found.source if moved else "the same keys below ingest and phantoms as before",
        found=wanted.source if moved else "others",
        action="Choose another output folder, or remove this one to pack the data again.",
    )


def _order(
    protocol: Protocol,
    config: BenchConfig,
    key: RunKey,
    datasets: dict[tuple[int | float, int], Path],
    out: Path,
) -> RunOrder:
    dataset = datasets[(key.labelled, key.seed)]
    cores = len(os.sched_getaffinity(0))
    settings = settings_of(protocol, config, key)
    return RunOrder(
        key=key,
        protocol=protocol.name,
        experiment=settings,
        beside=settings_beside(settings, key.variant),
        warmup_share=protocol.warmup_share,
        dataset=dataset.absolute(),
        dataset_digest=load_contract(DatasetManifest, dataset).digest,
        out=(out / RUNS / key.name).absolute(),
        chains=(out / "chains").absolute(),
        trainings=(out / "trainings").absolute(),
        threads=config.threads or max(1, cores // config.parallel),
    )


def _is_finished(order: RunOrder, pool: Pool) -> bool:
    """Whether the run needs no worker; one with other settings is a failure, not a result."""
    try:
        return finished(order) is not None
    except SssflowError as error:
        pool.failures.append(
            RunFailure(
                key=order.key,
                order_digest=order.digest,
                kind=error.kind,
                exit_code=error.exit_code,
                message=error.describe(),
            )
        )
        return True


def _tabulate(
    protocol: Protocol,
    config: BenchConfig,
    orders: Sequence[RunOrder],
    failed: Sequence[RunFailure],
    out: Path,
) -> BenchRecord:
    failures = {failure.key.name: failure for failure in failed}
    there = [
        order
        for order in orders
        if order.key.name not in failures and (order.out / RESULT_FILE).exists()
    ]
    scored = [read_scores(load_contract(RunResult, o.out / RESULT_FILE), o.out) for o in there]
    settings = orders[0].experiment.evaluate  # of all runs alike: no variant touches these keys
    resampling = Resampling(settings.bootstrap_resamples, settings.confidence, settings.seed)
    rows = group_rows(scored, resampling, settings.permutation_flips)
    idle = {o.key.name for o in there if _changes_nothing(protocol, config, o)}
    rows = [
        replace(row, same_as_default=all(result.key.name in idle for result in row.results))
        for row in rows
    ]
    reached = {order.key.name for order in there} | set(failures)
    missing = [order.key for order in orders if order.key.name not in reached]
    words = [f"Intervals: {resampling.describe()}."]
    compared = (found for row in rows for found in (row.comparison, row.over_default))
    words += list(dict.fromkeys(f"p: {found.test}." for found in compared if found))
    manifests = [load_contract(DatasetManifest, order.dataset) for order in there]
    words += list(dict.fromkeys(map(_split_words, there, manifests)))
    published = published_rows(protocol.published)
    data = list(dict.fromkeys(f"{m.name} (layout {m.source_layout})" for m in manifests))
    page = markdown(protocol, rows, failures, missing, published, words, config.settings, data)
    write_text(out / TABLE_FILE, page)
    write_text(out / CSV_FILE, table_csv(protocol, rows, failures))
    record = BenchRecord(
        protocol=protocol.name,
        protocol_digest=protocol.digest(),
        config=config.model_dump(mode="json", exclude={"poll_s"}),
        dataset_digests={f"l{o.key.labelled:g}-s{o.key.seed}": o.dataset_digest for o in orders},
        versions={"sssflow": sssflow.__version__},
        results={o.key.name: reference(o.out / RESULT_FILE, base=out.absolute()) for o in there},
        failures={name: failure.first_line for name, failure in failures.items()},
        missing=tuple(key.name for key in missing),
        files={name: reference(out / name, base=out) for name in (TABLE_FILE, CSV_FILE)},
    )
    save_contract(record, out / RECORD_FILE)
    return record


def _changes_nothing(protocol: Protocol, config: BenchConfig, order: RunOrder) -> bool:
    """Whether a run with a variant reads the very settings of one without."""
    if order.key.variant == DEFAULT:
        return False
    key = order.key.model_copy(update={"variant": DEFAULT})
    plain = {"experiment": settings_of(protocol, config, key), "beside": ()}
    return same_work(order, order.model_copy(update=plain))


def _split_words(order: RunOrder, manifest: DatasetManifest) -> str:
    return f"Split with {order.key.labelled:g} labelled: {manifest.split_rule}."


def _gravest(failures: Sequence[RunFailure], total: int, out: Path) -> SssflowError:
    codes = {failure.exit_code for failure in failures}
    kind = next((k for k in _KINDS if k.exit_code in codes), UnavailableError)
    return kind(
        f"{len(failures)} of {total} runs failed; the others are in the table.",
        where=out / TABLE_FILE,
        found="; ".join(f"{f.key.name}: {f.first_line}" for f in failures),
        action=f"Read {RUNS}/<run>/{LOG_FILE}; the same command tries the failed runs again.",
    )
