"""Is the dataset that lies in a folder the one that these settings make? Asked before any voxel.

Models, prompts and masks hold the digest of their dataset: without it they are of no use.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.errors import DataError, SssflowError, UsageError
from sssflow.ingest.config import IngestConfig
from sssflow.ingest.layouts import find_layout
from sssflow.ingest.layouts.base import LayoutOptions, SourceDataset
from sssflow.ingest.split import Split, assign_roles
from sssflow.storage.contracts import load_contract

_MANIFEST = "manifest.json"
_ACTION = (
    "Choose another folder, or remove this one: what was made from its dataset is then of no use."
)


def refuse_other(config: IngestConfig, source: Path, out: Path) -> None:
    """Refuse to replace a dataset by one of other settings or other cases.

    Names, roles and the kind of storage are compared, by the names of files alone; whether the
    content of the scans changed shows only when they are read, see `Packer.publish`. What is wrong
    with the source is left to the run, which leaves the older dataset untouched then.

    Raises:
        UsageError: `out` holds another dataset, or a manifest.json that is none.
    """
    path = out / _MANIFEST
    if not os.path.lexists(path):
        return
    try:
        there = load_contract(DatasetManifest, path)
    except DataError as error:
        raise UsageError(
            "The folder holds a manifest.json that would be replaced.",
            where=path,
            expected="none, or that of a packed dataset",
            found=error.what,
            action="Choose another folder, or remove this one.",
        ) from None
    try:
        options = LayoutOptions(patient_pattern=config.patient_pattern, ct_units=config.ct_units)
        dataset = find_layout(config.layout, source).discover(source, options)
        split = assign_roles(dataset, config.split)
    except SssflowError:
        return
    found = [] if dataset.problems else list(_differences(there, config, dataset, split))
    if found:
        raise UsageError(
            "The folder holds another dataset, which would be replaced.",
            where=path,
            expected="the dataset that this source and these settings make",
            found="\n".join(found),
            action=_ACTION,
        )


def _differences(
    there: DatasetManifest, config: IngestConfig, dataset: SourceDataset, split: Split
) -> Iterator[str]:
    for what, old, new in (
        ("name", there.name, config.name or dataset.layout),
        ("layout", there.source_layout, dataset.layout),
        ("classes", ", ".join(there.class_names), ", ".join(dataset.class_names)),
        ("ingest.store.kind", _stored(there), config.store.kind),
    ):
        if old != new:
            yield f"{what}: {old} there, {new} now"
    cases = {case.source.case_id: case for case in split.cases}
    yield from _sets("cases", (case.case_id for case in there.cases), cases)
    roles = list(_roles(there, split))
    yield from roles
    if not roles and (there.split_rule, there.label_order) != (split.rule, split.order):
        yield f"rule of the split: {there.split_rule} there, {split.rule} now"


def _roles(there: DatasetManifest, split: Split) -> Iterator[str]:
    for role in Role:
        old = (case.patient_id for case in there.with_role(role))
        new = (case.source.patient_id for case in split.cases if case.role == role)
        yield from _sets(f"{role} patients", old, new)


def _sets(what: str, old: Iterable[str], new: Iterable[str]) -> Iterator[str]:
    before, now = set(old), set(new)
    if before != now:
        one = min(before ^ now)
        side = "there alone" if one in before else "now alone"
        yield f"{what}: {len(before)} there, {len(now)} now ({one} {side})"


def _stored(manifest: DatasetManifest) -> str:
    return "lossless" if manifest.cases[0].quantised is None else "uint8"
