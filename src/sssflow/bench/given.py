"""Whether a packed dataset that somebody gives is what the protocol's name promises."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.errors import UsageError
from sssflow.ingest.config import Amount, IngestConfig

_OWN_LIST = re.compile(r"the data set's own list \((\d+)\)")
_DEFAULT_SHARE = {Role.VALIDATION: 0.1, Role.TEST: 0}
"""Of a role without an amount, where the data set has no list of its own (`SplitConfig`)."""


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
    listed = {role: _listed(manifest.split_rule, role) for role in _DEFAULT_SHARE}
    pool = patients[Role.LABELLED] + sum(patients[r] - (n or 0) for r, n in listed.items())
    amounts = {Role.VALIDATION: ingest.split.validation, Role.TEST: ingest.split.test}
    for role, amount in amounts.items():
        wanted = (listed[role] or 0) + _taken(role, amount, pool, listed[role] is not None)
        if patients[role] != wanted:
            expected = f"{wanted} {role} patients of {manifest.name}"
            raise _refusal(ingest, where, expected, f"{patients[role]}: {manifest.split_rule}")


def _listed(split_rule: str, role: Role) -> int | None:
    """Patients that the data set's own list gave a role; None without such a list."""
    clauses = (clause for clause in split_rule.split("; ") if clause.startswith(f"{role}: "))
    found = _OWN_LIST.search(next(clauses, ""))
    return None if found is None else int(found[1])


def _taken(role: Role, amount: Amount | None, pool: int, has_list: bool) -> int:
    """Patients that the rule takes from the end of the order, beside those of a list."""
    if amount is None:
        amount = 0 if has_list else _DEFAULT_SHARE[role]
    return amount if isinstance(amount, int) else int(amount * pool + 0.5)


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
