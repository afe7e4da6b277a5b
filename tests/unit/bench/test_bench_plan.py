"""Which runs there are, with which settings, on which labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sssflow.bench.config import BenchConfig
from sssflow.bench.plan import run_keys, settings_of
from sssflow.bench.protocol import Protocol, load_protocol, protocol_names
from sssflow.bench.published import PublishedRow, is_plausible, published_rows
from sssflow.bench.stage import plan
from sssflow.bench.variants import find_variant, shipped_variants
from sssflow.configuration import dump_yaml
from sssflow.contracts.bench import RunKey
from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.errors import DataError, DataProblems, UsageError
from sssflow.ingest import relabel
from sssflow.ingest.config import IngestConfig
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.training.methods.registry import METHODS


def test_every_shipped_protocol_is_valid_with_every_variant_and_method() -> None:
    names = protocol_names()
    assert {"acdc", "acdc-lite", "phantoms-lite"} <= set(names)
    for name in names:
        protocol = load_protocol(name)
        assert protocol.name == name
        assert set(protocol.methods) <= set(METHODS)
        for variant in shipped_variants():
            key = RunKey(method="mean_teacher", variant=variant, labelled=1, seed=5)
            settings = settings_of(protocol, BenchConfig(), key)
            assert settings.train.seed == 5
            assert settings.train.selection == protocol.selection


def test_acdc_is_the_published_protocol() -> None:
    protocol = load_protocol("acdc")
    train = protocol.experiment.train
    assert protocol.labelled == (1, 3, 7)
    assert train.preprocessing.size_hw == (256, 256)
    assert train.steps == 30_000
    assert (train.batch_labelled, train.batch_unlabelled) == (12, 12)
    optimiser = train.optimiser
    assert (optimiser.kind, optimiser.learning_rate, optimiser.momentum) == ("sgd", 0.01, 0.9)
    assert (optimiser.weight_decay, optimiser.schedule, optimiser.poly_power) == (1e-4, "poly", 0.9)


def test_a_supervised_run_is_in_every_table_once(tiny_protocol: Protocol) -> None:
    config = BenchConfig(methods=("mean_teacher",), seeds=(1, 2))
    keys = run_keys(tiny_protocol, config, METHODS)
    assert [(k.method, k.labelled, k.seed) for k in keys] == [
        ("supervised", 1, 1),
        ("mean_teacher", 1, 1),
        ("supervised", 2, 1),
        ("mean_teacher", 2, 1),
        ("supervised", 1, 2),
        ("mean_teacher", 1, 2),
        ("supervised", 2, 2),
        ("mean_teacher", 2, 2),
    ]


def test_a_variant_that_changes_supervised_training_gets_a_baseline_of_its_own(
    tiny_protocol: Protocol,
) -> None:
    config = BenchConfig(labelled=(1,), methods=("mean_teacher",), seeds=(1,), variants=("wide",))
    keys = run_keys(tiny_protocol, config, METHODS)
    assert [(k.method, k.variant) for k in keys] == [
        ("supervised", "wide"),
        ("mean_teacher", "wide"),
    ]


def test_later_settings_win_and_a_method_changes_only_its_own_keys(tiny_protocol: Protocol) -> None:
    key = RunKey(method="mean_teacher", variant="wide", labelled=1, seed=9)
    plain = settings_of(tiny_protocol, BenchConfig(), key).train
    assert plain.mean_teacher.consistency_weight == 0.5
    assert plain.mean_teacher.ema_decay == tiny_protocol.experiment.train.mean_teacher.ema_decay
    assert plain.network.base_channels == 32
    changed = BenchConfig(settings=("train.network.base_channels=8", "train.seed=77"))
    asked = settings_of(tiny_protocol, changed, key).train
    assert asked.network.base_channels == 8
    assert asked.seed == 9, "the seed is the run's"


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("train.method=dan", "--methods"),
        ("train.seed=77", "--seeds"),
        ("train.selection=last", "selection of a protocol"),
        ("ingest.split.labelled=5", "--labelled"),
        ("warmup.steps=10", "below train"),
    ],
)
def test_settings_that_no_run_would_read_are_refused_before_the_table_tells_of_them(
    tiny_protocol: Protocol, text: str, instead: str
) -> None:
    with pytest.raises(UsageError, match="changes nothing") as refused:
        plan(tiny_protocol, BenchConfig(settings=("train.steps=5", text)))
    assert refused.value.where == f"--set {text}"
    assert instead in refused.value.expected
    assert plan(tiny_protocol, BenchConfig(settings=("train.optimiser.learning_rate=0.1",)))


def test_unknown_names_are_refused_with_the_known_ones(tiny_protocol: Protocol) -> None:
    with pytest.raises(UsageError, match="no such protocol"):
        load_protocol("acdx")
    with pytest.raises(UsageError, match="no such variant"):
        find_variant("default+wid")
    with pytest.raises(UsageError, match="supervised"):
        run_keys(tiny_protocol, BenchConfig(methods=("meanteacher",)), METHODS)


def test_a_plan_without_a_run_is_refused_with_the_reason(tiny_protocol: Protocol) -> None:
    alone = BenchConfig(methods=("supervised",), variants=("student",), baseline=False)
    with pytest.raises(UsageError, match="nothing to run") as refused:
        plan(tiny_protocol, alone)
    assert (
        refused.value.found == "supervised alone, which trains and measures alike without student"
    )
    assert plan(tiny_protocol, alone.model_copy(update={"baseline": True}))


@pytest.mark.parametrize(
    ("name", "expected"), [("mean_teachr", "mean_teacher, perhaps"), ("q", " | ".join(METHODS))]
)
def test_keys_of_a_protocol_for_a_method_that_there_is_not_are_refused(
    tiny_protocol: Protocol, name: str, expected: str
) -> None:
    slip = tiny_protocol.model_copy(update={"methods": {name: {"steps": 5}}})
    with pytest.raises(UsageError, match="keys for a method") as refused:
        plan(slip, BenchConfig(methods=("mean_teacher",)))
    assert (refused.value.where, refused.value.expected) == (f"methods.{name}", expected)


def test_keys_of_a_method_that_every_run_sets_itself_are_refused(tiny_protocol: Protocol) -> None:
    for key, instead in (("seed", "--seeds"), ("method", "--methods"), ("selection", "selection")):
        changed = tiny_protocol.model_copy(update={"methods": {"mean_teacher": {key: 1}}})
        with pytest.raises(UsageError, match="changes nothing") as refused:
            run_keys(changed, BenchConfig(), METHODS)
        assert refused.value.where == f"methods.mean_teacher.{key}"
        assert instead in refused.value.expected


def test_a_protocol_that_names_published_figures_that_there_are_not_is_refused_when_it_is_read(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own.yaml"
    lite = load_protocol("phantoms-lite")
    own.write_text(dump_yaml(lite).replace("published: ''", "published: acdcc"), "utf-8")
    with pytest.raises(UsageError, match=r"named 'acdcc'; give acdc \| ") as refused:
        load_protocol(str(own))
    assert refused.value.where == str(own)
    own.write_text(dump_yaml(lite), "utf-8")
    assert load_protocol(str(own)) == lite


def test_fewer_labels_keep_the_first_patients_of_the_order_and_hide_the_other_labels(
    whole: Path, tmp_path: Path
) -> None:
    manifest = relabel.run(whole, 2, tmp_path / "two", IngestConfig())
    labelled = {case.patient_id for case in manifest.labelled(Role.LABELLED)}
    assert labelled == {"pc", "pa"}
    assert {case.patient_id for case in manifest.with_role(Role.UNLABELLED)} == {"pd", "pb"}
    assert len(manifest.labelled(Role.VALIDATION)) == 3
    names = {path.name for path in (tmp_path / "two" / "labels").iterdir()}
    assert names == {f"{name}.b2nd" for name in "acvwx"}
    again = load_contract(DatasetManifest, tmp_path / "two" / "manifest.json")
    assert again == manifest
    quarter = relabel.run(whole, 0.25, tmp_path / "quarter", IngestConfig())
    assert quarter.labelled(Role.LABELLED)[0].case_id == "c"


def test_a_dataset_is_never_replaced_by_a_part_of_itself(whole: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in whole.parent.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(whole.parent)
    for out in (whole.parent, tmp_path / "link"):
        with pytest.raises(UsageError, match="part of itself"):
            relabel.run(whole, 2, out, IngestConfig())
    assert {p: p.read_bytes() for p in whole.parent.rglob("*") if p.is_file()} == before


def test_copies_that_come_under_two_roles_are_refused_as_at_packing(
    with_copy: Callable[[str, str], Path], tmp_path: Path
) -> None:
    copied = with_copy("c", "d")  # first and third of the order
    note, refuse = (IngestConfig.model_validate({"copies": rule}) for rule in ("note", "refuse"))
    with pytest.raises(DataProblems, match="so many labels") as refused:
        relabel.run(copied, 2, tmp_path / "two", IngestConfig())
    assert [problem.found for problem in refused.value.problems] == [
        "pc is labelled, pd is unlabelled"
    ]
    assert not (tmp_path / "two").exists()
    noted = relabel.run(copied, 2, tmp_path / "two", note)
    assert noted.split_rule.endswith("; the same image is in c (labelled), d (unlabelled)")
    with pytest.raises(DataProblems):
        relabel.run(copied, 3, tmp_path / "three", refuse)
    same_role = relabel.run(copied, 3, tmp_path / "three", IngestConfig())
    assert "same image" not in same_role.split_rule


def test_copies_of_one_role_change_nothing_as_in_acdc(
    whole: Path, with_copy: Callable[[str, str], Path], tmp_path: Path
) -> None:
    copied = with_copy("d", "b")  # the last two of the order
    rules = [
        relabel.run(found, 2, tmp_path / "out", IngestConfig()).split_rule
        for found in (whole, copied)
    ]
    assert rules[0] == rules[1]


def test_a_dataset_that_names_a_file_elsewhere_puts_no_link_there(
    whole: Path, tmp_path: Path
) -> None:
    manifest = load_contract(DatasetManifest, whole)
    first = manifest.cases[0]
    away = first.image.model_copy(update={"uri": "../elsewhere"})
    cases = (first.model_copy(update={"image": away}), *manifest.cases[1:])
    hostile = save_contract(
        manifest.model_copy(update={"cases": cases}), tmp_path / "hostile" / "manifest.json"
    )
    with pytest.raises(DataError, match="outside"):
        relabel.run(hostile, 2, tmp_path / "two", IngestConfig())
    assert not (tmp_path / "elsewhere").is_symlink()


@pytest.mark.parametrize("labelled", [5, 0.01])
def test_more_labels_than_there_are_are_refused(
    whole: Path, tmp_path: Path, labelled: float
) -> None:
    with pytest.raises(UsageError, match="1 to 4"):
        relabel.run(whole, labelled, tmp_path / "out", IngestConfig())
    assert not (tmp_path / "out").exists()


def test_a_published_row_that_breaks_jensens_inequality_is_marked() -> None:
    sound = PublishedRow(
        method="a", labelled=3, dice=88.85, jaccard=80.53, selection="n/k", source="s"
    )
    assert is_plausible(sound)
    # 2 * 0.9057 mean Dice allows no mean Jaccard below 82.77.
    assert not is_plausible(sound.model_copy(update={"dice": 90.57, "jaccard": 81.73}))
    marked = {row.method for row in published_rows("acdc") if row.method.endswith("†")}
    assert marked == {"VQ-Seg †"}
    assert all(row.selection and row.source for row in published_rows("acdc"))
    assert published_rows("") == ()


def test_a_method_that_cannot_train_the_network_is_refused_before_anything_is_trained(
    tiny_protocol: Protocol,
) -> None:
    config = BenchConfig(methods=("supervised", "sss_in_loop"), seeds=(1,))
    with pytest.raises(UsageError, match="sss_in_loop, default: In-loop SSS") as refused:
        plan(tiny_protocol, config)
    assert "network.name=sam2" in refused.value.action
    own = {"sss_in_loop": {"network": {"name": "sam2"}}}
    assert len(plan(tiny_protocol.model_copy(update={"methods": own}), config)) == 4


def test_a_method_for_slices_is_refused_under_a_protocol_of_volumes() -> None:
    volumes = load_protocol("la-lite")
    with pytest.raises(UsageError, match=r"sss, default: .* cannot train a 3-D network"):
        plan(volumes, BenchConfig(methods=("sss",), seeds=(1,)))
    assert plan(volumes, BenchConfig(methods=("mean_teacher",), seeds=(1,)))


@pytest.mark.parametrize("name", ["acdc", "acdc-lite", "phantoms-lite"])
def test_every_listed_method_can_be_trained_under_the_protocols_of_slices(name: str) -> None:
    protocol = load_protocol(name)
    methods = tuple(METHODS)
    keys = plan(protocol, BenchConfig(methods=methods, labelled=protocol.labelled[:1], seeds=(1,)))
    assert {key.method for key in keys} == set(METHODS)


def test_every_method_for_the_net_can_be_trained_by_variants_that_change_it() -> None:
    methods = tuple(method for method in METHODS if method != "sss_in_loop")
    variants = ("default", "residual", "student+rare+average")
    config = BenchConfig(methods=methods, variants=variants, seeds=(1,))
    assert plan(load_protocol("phantoms-lite"), config)
