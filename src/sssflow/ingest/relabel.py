"""A dataset with fewer labelled patients than the one it is made from, without a copy of the scans.

One packed dataset with every label serves all label counts of a benchmark: the first patients of
its `label_order` stay labelled, the others become unlabelled. The new folder reaches the labels of
the cases that keep one, and no others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Role, UnlabelledCase
from sssflow.errors import DataProblems, UsageError
from sssflow.ingest.config import Amount, IngestConfig
from sssflow.ingest.split import patients_of
from sssflow.ingest.verify import (
    CaseFacts,
    copies_under_two_patients,
    copy_problem,
    must_refuse,
)
from sssflow.storage.atomic import disk_errors
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.uri import below

MANIFEST = "manifest.json"
_IMAGES, _LABELS = "images", "labels"


def run(dataset: Path, labelled: Amount, out: Path, config: IngestConfig) -> DatasetManifest:
    """Write `out/manifest.json` with the first `labelled` patients labelled and the rest not.

    `out` holds links to the files of `dataset`, which must stay where they are. The roles
    validation and test are not touched.

    Args:
        dataset: The manifest.json of a dataset whose `label_order` is known.
        labelled: Patients, or a share of the labelled ones.
        out: Folder, not that of `dataset`; an earlier manifest in it is replaced.
        config: Its `copies` says what becomes of an image that now lies under two roles. Only
            equal files are known here; flipped or turned copies are told when the scans are packed.

    Raises:
        DataError: The dataset cannot be read, or copies of an image are refused.
        UsageError: It has no order of labels, or fewer labelled patients than asked for, or it lies
            in `out`.
        UnavailableError: The disk is full or read-only.
    """
    if dataset.parent.resolve() == out.resolve():
        raise UsageError(
            "A dataset cannot be replaced by a part of itself.",
            where=out,
            expected="another folder than that of the dataset",
            action="Choose another output folder.",
        )
    whole = load_contract(DatasetManifest, dataset)
    kept = _kept(whole, labelled, dataset)
    cases = tuple(
        _unlabelled(case)
        if isinstance(case, LabelledCase)
        and case.role is Role.LABELLED
        and case.patient_id not in kept
        else case
        for case in whole.cases
    )
    rules = [
        whole.split_rule,
        f"of these only the first {len(kept)} of the label order stay labelled, the others are "
        "unlabelled",
        *_accepted_copies(cases, config),
    ]
    manifest = whole.model_copy(
        update={"cases": cases, "label_order": kept, "split_rule": "; ".join(rules)}
    )
    _link(manifest, dataset.parent, out)
    save_contract(manifest, out / MANIFEST)
    return manifest


def _kept(whole: DatasetManifest, labelled: Amount, dataset: Path) -> tuple[str, ...]:
    order = whole.label_order
    count = patients_of(labelled, len(order))
    if not 1 <= count <= len(order):
        raise UsageError(
            "The dataset cannot give so many labelled patients.",
            where=dataset,
            expected=f"1 to {len(order)} (its labelled patients whose order is known)",
            found=labelled,
            action="Pack it again with ingest.split.labelled=all.",
        )
    return order[:count]


def _accepted_copies(
    cases: Iterable[LabelledCase | UnlabelledCase], config: IngestConfig
) -> list[str]:
    """A note for each image under patients of different roles, by the same rule as at packing.

    Copies of one role are not noted: that was done when they were packed, and they mislead nobody.

    Raises:
        DataProblems: `config.copies` refuses some.
    """
    facts = [
        CaseFacts(
            case_id=case.case_id,
            patient_id=case.patient_id,
            role=case.role,
            content=case.image.sha256,
            image_values=case.image.sha256,
            grid=case.grid,
            voxels_per_class=(),
        )
        for case in cases
    ]
    groups = copies_under_two_patients(facts)
    refused = [copy_problem(same) for same in groups if must_refuse(same, config)]
    if refused:
        raise DataProblems(
            "The dataset cannot be used with so many labels.",
            refused,
            action="Ask for another number of labels, or accept the copies by ingest.copies=note.",
        )
    return [
        "the same image is in " + ", ".join(f"{fact.case_id} ({fact.role})" for fact in same)
        for same in groups
        if len({fact.role for fact in same}) > 1
    ]


def _unlabelled(case: LabelledCase) -> UnlabelledCase:
    fields = case.model_dump(exclude={"label", "role"})
    return UnlabelledCase.model_validate(fields)


def _link(manifest: DatasetManifest, base: Path, out: Path) -> None:
    with disk_errors(out):
        (out / MANIFEST).unlink(missing_ok=True)
        for part in (_IMAGES, _LABELS):
            shutil.rmtree(out / part, ignore_errors=True)
        for case in manifest.cases:
            refs = [case.image, case.label] if isinstance(case, LabelledCase) else [case.image]
            for ref in refs:
                if "://" in ref.uri:  # absolute: it stays true from anywhere
                    continue
                link = below(ref.uri, base=out)
                link.parent.mkdir(parents=True, exist_ok=True)
                target = os.path.relpath((base / ref.uri).resolve(), link.parent.resolve())
                link.symlink_to(target)
