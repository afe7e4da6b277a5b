"""Which packed datasets are the protocol's, by numbers that were counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from sssflow.bench import stage
from sssflow.bench.config import BenchConfig
from sssflow.bench.given import require_protocols_data
from sssflow.bench.protocol import Protocol, load_protocol
from sssflow.contracts.dataset import (
    DatasetManifest,
    LabelledCase,
    Quantisation,
    Role,
    UnlabelledCase,
)
from sssflow.errors import UsageError
from sssflow.ingest.config import IngestConfig
from sssflow.storage.contracts import load_contract, save_contract

OWN = "validation: the data set's own list"


def dataset(whole: Path, layout: str, counts: dict[str, int], rule: str) -> DatasetManifest:
    """A manifest with so many patients of each role, two scans each."""
    base = load_contract(DatasetManifest, whole)
    pattern = base.cases[0].model_dump(exclude={"case_id", "patient_id", "role"})
    cases = []
    for role, count in counts.items():
        kind = UnlabelledCase if role == Role.UNLABELLED else LabelledCase
        for number in range(2 * count):
            names = {"case_id": f"{role}{number:03}", "patient_id": f"{role}{number // 2}"}
            fields = {k: v for k, v in pattern.items() if kind is LabelledCase or k != "label"}
            cases.append(kind.model_validate({**fields, **names, "role": role}))
    update = {"source_layout": layout, "split_rule": rule, "label_order": ()}
    update["cases"] = tuple(sorted(cases, key=lambda case: case.case_id))
    return base.model_copy(update=update)


@pytest.mark.parametrize(
    ("protocol", "layout", "counts", "rule"),
    [
        ("acdc", "ssl4mis", (70, 10, 20), f"test: the data set's own list (20); {OWN} (10)"),
        ("acdc", "ssl4mis", (70, 10, 0), f"test: none; {OWN} (10)"),
        # 0.1 of the 96 patients of the training list, rounded.
        ("bhsd", "bhsd", (86, 10, 96), "test: the data set's own list (96); validation: the last"),
        ("la", "la", (75, 5, 20), "test: the data set's own list (20); validation: the last 5"),
        ("la-published", "la", (80, 0, 20), "test: the data set's own list (20); validation: none"),
        ("phantoms-lite", "acdc", (14, 2, 8), "test: the last 8; validation: the last 2"),
    ],
)
def test_the_protocols_own_data_are_taken(
    whole: Path, protocol: str, layout: str, counts: tuple[int, int, int], rule: str
) -> None:
    roles = dict(zip(("labelled", "validation", "test"), counts, strict=True))
    manifest = dataset(whole, layout, {**roles, "unlabelled": 3}, rule)
    require_protocols_data(load_protocol(protocol).experiment.ingest, manifest, whole)


@pytest.mark.parametrize(
    ("protocol", "layout", "counts", "expected"),
    [
        ("bhsd-lite", "acdc", (14, 2, 8), "layout bhsd"),
        ("la", "la", (72, 8, 0), "5 validation patients"),
        ("la-published", "la", (75, 5, 0), "0 validation patients"),
        ("la", "la", (70, 5, 5), "0 test patients"),
        ("bhsd", "bhsd", (80, 16, 0), "10 validation patients"),
    ],
)
def test_data_of_another_layout_or_split_are_refused_with_the_keys_that_pack_them(
    whole: Path, protocol: str, layout: str, counts: tuple[int, int, int], expected: str
) -> None:
    ingest = load_protocol(protocol).experiment.ingest
    roles = dict(zip(("labelled", "validation", "test"), counts, strict=True))
    manifest = dataset(whole, layout, roles, "drawn")
    with pytest.raises(UsageError, match=expected) as refused:
        require_protocols_data(ingest, manifest, whole)
    assert f"--set ingest.layout={ingest.layout}" in refused.value.describe()
    assert f"--set ingest.split.validation={ingest.split.validation}" in refused.value.describe()


def test_where_the_protocol_leaves_it_to_the_lists_more_than_them_is_refused(whole: Path) -> None:
    roles = {"labelled": 65, "validation": 15}
    manifest = dataset(whole, "ssl4mis", roles, f"test: none; {OWN} (10) and the last 5")
    ingest = load_protocol("acdc").experiment.ingest
    with pytest.raises(UsageError, match="10 validation patients"):
        require_protocols_data(ingest, manifest, whole)


def test_roles_of_a_file_and_a_layout_that_is_found_are_not_counted(whole: Path) -> None:
    ingest = IngestConfig.model_validate({"split": {"file": "roles.json"}})
    require_protocols_data(ingest, load_contract(DatasetManifest, whole), whole)


def test_a_bench_refuses_the_data_before_any_run(
    tiny_protocol: Protocol, tiny_bench: BenchConfig, whole: Path, tmp_path: Path
) -> None:
    other = tiny_bench.model_copy(update={"settings": ("ingest.split.validation=2",)})
    with pytest.raises(UsageError, match="not the protocol's"):
        stage.run(tiny_protocol, other, stage.Inputs(dataset=whole), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bench_refuses_8_bit_images_for_a_rule_in_own_units(
    tiny_protocol: Protocol, tiny_bench: BenchConfig, whole: Path, tmp_path: Path
) -> None:
    given = load_contract(DatasetManifest, whole)
    how = Quantisation(low=0.0, high=9.0, clipped_share=0.0, rms_error=0.001)
    cases = tuple(case.model_copy(update={"quantised": how}) for case in given.cases)
    packed = save_contract(given.model_copy(update={"cases": cases}), tmp_path / "manifest.json")
    own = ("train.preprocessing.intensity.kind=none",)
    config = tiny_bench.model_copy(update={"settings": own})
    with pytest.raises(UsageError, match="stored in 8 bits"):
        stage.run(tiny_protocol, config, stage.Inputs(dataset=packed), tmp_path / "out")
    assert not (tmp_path / "out").exists()
