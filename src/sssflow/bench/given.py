"""Whether a packed dataset that somebody gives is what the protocol's name promises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.errors import UsageError
from sssflow.ingest.config import IngestConfig
from sssflow.ingest.split import DEFAULT_AMOUNTS, listed_in, patients_of


def require_protocols_data(ingest: IngestConfig, manifest: DatasetManifest, where: Path) -> None:
    """Refuse a dataset of another layout, or with other numbers of validation or test patients.

    What cannot be known is let pass: the layout where it is `auto`, the numbers where a split file
    gave the roles.

    Raises:
        UsageError: It is not the protocol's data; the settings that pack it are named.
    """
    if ingest.layout not in ("auto", manifest.source_layout):
        raise _refusal(ingest, where, f"layout {ingest.layout}", manifest.source_layout)
    if ingest.split.file is not None:
        return
    patients = Counter(dict((case.patient_id, case.role) for case in manifest.cases).values())
    listed = {role: listed_in(manifest.split_rule, role) for role in DEFAULT_AMOUNTS}
    pool = patients[Role.LABELLED] + sum(patients[r] - (n or 0) for r, n in listed.items())
    amounts = {Role.VALIDATION: ingest.split.validation, Role.TEST: ingest.split.test}
    for role, amount in amounts.items():
        if amount is None:
            amount = DEFAULT_AMOUNTS[role] if listed[role] is None else 0
        wanted = (listed[role] or 0) + patients_of(amount, pool)
        if patients[role] != wanted:
            expected = f"{wanted} {role} patients of {manifest.name}"
            raise _refusal(ingest, where, expected, f"{patients[role]}: {manifest.split_rule}")


def _refusal(ingest: IngestConfig, where: Path, expected: str, found: str) -> UsageError:
    keys = {"layout": ingest.layout, "split.labelled": "all"}
    for name in ("validation", "test"):
        amount = getattr(ingest.split, name)
        if amount is not None:
            keys[f"split.{name}"] = amount
    settings = " ".join(f"--set ingest.{key}={value}" for key, value in keys.items())
    return UsageError(
        "The dataset is not the protocol's.",
        where=where,
        expected=expected,
        found=found,
        action=f"Pack it with {settings}, or say the difference by --set ingest.KEY=VALUE; the "
        "table then says so too.",
    )
