"""Which trainings of a table are one and the same."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from sssflow.bench import stage
from sssflow.bench.config import BenchConfig
from sssflow.bench.plan import RunOrder, settings_of
from sssflow.bench.protocol import Protocol, load_protocol
from sssflow.bench.run import run
from sssflow.bench.shared import (
    adapted_name,
    chain_name,
    same_work,
    training_name,
    warmup_of,
)
from sssflow.configuration import override_config
from sssflow.contracts.bench import RunKey
from sssflow.contracts.model import TrainedModel
from sssflow.ingest import relabel
from sssflow.ingest.config import IngestConfig
from sssflow.networks.registry import build_network
from sssflow.storage.contracts import load_contract
from sssflow.training import stage as training
from sssflow.training.config import CutMixConfig, TrainConfig
from sssflow.training.method_config import MethodName
from sssflow.training.methods.reads import (
    STRONG_VIEWS,
    has_teacher,
    own_sections,
    used_settings,
)
from sssflow.training.methods.registry import METHODS, build_method

SECTIONS = [name for name in get_args(MethodName) if name in TrainConfig.model_fields]


def order(protocol: str, method: str, variant: str) -> RunOrder:
    loaded = load_protocol(protocol)
    key = RunKey(method=method, variant=variant, labelled=loaded.labelled[0], seed=1)
    nowhere = Path("nowhere")
    return RunOrder(
        key=key,
        protocol=protocol,
        experiment=settings_of(loaded, BenchConfig(), key),
        warmup_share=0.4,
        dataset=nowhere,
        dataset_digest="0" * 64,
        out=nowhere,
        chains=nowhere,
        trainings=nowhere,
    )


@pytest.mark.parametrize(
    ("protocol", "method", "variant", "same"),
    [
        ("acdc-lite", "mean_teacher", "confident", True),
        ("acdc-lite", "unimatch", "confident", True),  # its default is 0.95 already
        ("acdc-lite", "unimatch_v2", "confident", False),
        ("acdc-lite", "sss", "confident", False),  # on unimatch_v2's settings
        ("acdc-lite", "mean_teacher", "loose", True),
        ("acdc-lite", "semisam", "loose", False),
        ("la-lite", "mean_teacher", "rare", True),  # 0.33 already
        ("acdc-lite", "mean_teacher", "rare", False),
        ("acdc-lite", "mean_teacher", "paste", True),
        ("acdc-lite", "bcp", "no-cutmix", True),
        ("acdc-lite", "unimatch", "paste", False),
        ("acdc-lite", "sss", "no-cutmix", False),
        ("acdc-lite", "mean_teacher", "average", True),  # its teacher is the average
        ("acdc-lite", "semisam", "average", True),
        ("acdc-lite", "supervised", "average", False),
        ("acdc-lite", "dan", "average", False),
        ("acdc-lite", "sss", "average", False),  # its warm-up has no teacher
        ("acdc-lite", "fixmatch", "student", True),
        ("acdc-lite", "ua_mt", "student", False),
    ],
)
def test_a_variant_of_settings_that_a_method_does_not_read_trains_nothing_anew(
    protocol: str, method: str, variant: str, same: bool
) -> None:
    plain, changed = (order(protocol, method, name) for name in ("default", variant))
    names = {training_name(one, one.experiment.train) for one in (plain, changed)}
    assert (len(names) == 1) is same
    assert same_work(plain, changed) is same


def test_a_variant_of_the_test_alone_shares_the_training_and_is_other_work() -> None:
    plain, flips = (order("acdc-lite", "mean_teacher", name) for name in ("default", "flips"))
    assert training_name(plain, plain.experiment.train) == training_name(
        flips, flips.experiment.train
    )
    assert not same_work(plain, flips)


def with_setting(found: RunOrder, line: str) -> RunOrder:
    changed = override_config(found.experiment, [line])
    return found.model_copy(update={"experiment": changed, "beside": (changed.train,)})


def names_of(found: RunOrder) -> dict[str, str]:
    return {
        "order": found.digest,
        "chain": chain_name(found),
        "adapted": adapted_name(found),
        "training": training_name(found, found.experiment.train),
    }


@pytest.mark.parametrize(
    ("key", "named_by"),
    [
        ("sam.weights", {"order", "chain", "adapted", "training"}),
        ("generalist.weights", {"order", "training"}),
        ("train.network.sam2.weights", {"order", "chain", "training"}),
    ],
)
def test_a_file_of_weights_that_is_replaced_is_other_work_and_one_that_is_moved_is_the_same(
    key: str, named_by: set[str], tmp_path: Path
) -> None:
    plain = order("acdc-lite", "sss", "default")
    first, moved = tmp_path / "first.pt", tmp_path / "moved.pt"
    first.write_bytes(b"one")
    moved.write_bytes(b"one")
    named = with_setting(plain, f"{key}={first}")
    before = names_of(named)
    there = names_of(with_setting(plain, f"{key}={moved}"))
    # A training keeps its student's settings as written, so it has a folder for each path.
    own = {"chain", "training"} if key.startswith("train.") else set()
    assert {name for name, value in there.items() if value != before[name]} == own
    first.write_bytes(b"two")
    os.utime(first, ns=(1, 1))
    assert {name for name, value in names_of(named).items() if value != before[name]} == named_by


@pytest.mark.parametrize(
    ("key", "inside", "named_by"),
    [
        ("sam.onnx.bundle", "bundle.json", {"order", "chain", "adapted", "training"}),
        ("ingest.split.file", "", {"order"}),
    ],
)
def test_graphs_and_lists_of_roles_count_by_what_they_hold_too(
    key: str, inside: str, named_by: set[str], tmp_path: Path
) -> None:
    plain = order("acdc-lite", "sss", "default")
    first, moved = tmp_path / "first", tmp_path / "moved"
    for place in (first, moved):
        file = place / inside if inside else place
        file.parent.mkdir(exist_ok=True)
        file.write_text("one")
    named = with_setting(plain, f"{key}={first}")
    before = names_of(named)
    assert names_of(with_setting(plain, f"{key}={moved}")) == before
    assert before["order"] != names_of(plain)["order"]
    (first / inside if inside else first).write_text("and two")
    assert {name for name, value in names_of(named).items() if value != before[name]} == named_by


def sixteen(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def test_settings_that_name_no_file_have_the_names_that_earlier_versions_gave() -> None:
    found = order("acdc-lite", "sss", "paste")
    settings, data = found.experiment, found.dataset_digest
    content = found.model_dump(
        mode="json", include={"key", "experiment", "beside", "warmup_share", "dataset_digest"}
    )
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    sam, own = settings.sam.digest(), used_settings(settings.train).digest()
    before = [data, warmup_of(found).digest(), settings.adapt.digest(), sam]
    roles = [role.value for role in settings.pipeline.scored_roles]
    chain = sixteen(*before, settings.prompts.digest(), *roles)
    assert names_of(found) == {
        "order": hashlib.sha256(text.encode()).hexdigest(),
        "chain": chain,
        "adapted": "sam2-" + sixteen(data, settings.adapt.digest(), sam),
        "training": sixteen(data, own, chain, settings.generalist.digest()),
    }


def modules_of(method: type) -> list[ModuleType]:
    """The modules of its classes, and those of the training room that these import whole."""
    found = {inspect.getmodule(one) for one in method.__mro__}
    inner = [m for one in found for m in vars(one).values() if isinstance(m, ModuleType)]
    return [m for m in [*found, *inner] if m is not None and "sssflow.training" in m.__name__]


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("fixmatch", ("train.augmentation.cutmix.probability=0",)),
        ("unimatch_v2", ("train.augmentation.class_paste_probability=0.5",)),
        ("sss", ("train.augmentation.cutmix.probability=0", "train.ema_evaluation=true")),
        ("dan", ("train.ema_evaluation=true", "train.ema_evaluation_decay=0.9")),
        ("mean_teacher", ("train.evaluate=student",)),
    ],
)
def test_trainings_that_read_the_shared_keys_have_the_names_that_earlier_versions_gave(
    method: str, lines: tuple[str, ...]
) -> None:
    plain = order("acdc-lite", method, "default")
    changed = override_config(plain.experiment, lines)
    found = plain.model_copy(update={"experiment": changed})
    before = own_sections(changed.train).digest()
    parts = (found.dataset_digest, before, chain_name(found), changed.generalist.digest())
    assert training_name(found, changed.train) == sixteen(*parts)


UNREAD = {
    "supervised": {"ema_evaluation_decay": 0.5, "evaluate": "student"},
    "mean_teacher": {"ema_evaluation": True, "ema_evaluation_decay": 0.5, "evaluate": "ema"},
    "bcp": {"ema_evaluation": True},
    "cps": {"evaluate": "student"},
    "unimatch_v2": {"ema_evaluation": True, "evaluate": "ema"},
}


@pytest.mark.parametrize("method", UNREAD)
def test_keys_that_a_method_does_not_read_change_no_bit_of_its_model(
    method: str, tiny_protocol: Protocol, whole: Path, tmp_path: Path
) -> None:
    """The proof of what `used_settings` leaves out: trained with and without."""
    relabel.run(whole, 2, tmp_path / "data", IngestConfig())
    key = RunKey(method=method, variant="default", labelled=2, seed=1)
    two = BenchConfig(settings=("train.steps=2", "train.eval_every=1"))
    plain = settings_of(tiny_protocol, two, key).train
    update = dict(UNREAD[method])
    if method not in STRONG_VIEWS:
        views = {"cutmix": CutMixConfig(probability=0.0), "class_paste_probability": 0.5}
        update["augmentation"] = plain.augmentation.model_copy(update=views)
    changed = plain.model_copy(update=update)
    assert used_settings(changed) == used_settings(plain) != changed
    found = []
    for name, config in (("plain", plain), ("changed", changed)):
        place = tmp_path / name
        record = training.run(config, tmp_path / "data" / relabel.MANIFEST, place)
        model = load_contract(TrainedModel, place / "model" / "model.json")
        found.append((model.weights.sha256, record.history, record.selection))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("keys", "readers"),
    [
        (r"\.cutmix\b(?!\.prob)|\.class_paste_probability", {"methods/streams.py"}),
        (r"\.ema_evaluation\b|\.ema_evaluation_decay", {"methods/registry.py"}),
        (r"config\.evaluate\b", {"loop.py", "requirements.py"}),
    ],
)
def test_the_shared_keys_are_read_where_they_are_thought_to_be(
    keys: str, readers: set[str]
) -> None:
    room = Path(inspect.getfile(training)).parent
    found = {
        str(path.relative_to(room))
        for path in room.rglob("*.py")
        if re.search(keys, path.read_text("utf-8"))
    }
    assert found - {"methods/reads.py"} == readers


@pytest.mark.parametrize(
    ("method", "base"),
    [*((name, "mean_teacher") for name in METHODS), ("semisam", "ua_mt"), ("semisam", "dan")],
)
def test_every_section_that_the_code_of_a_method_names_is_kept(method: str, base: str) -> None:
    """By the text of its classes' modules and of the modules of the room that these import."""
    network = {"name": "sam2" if method == "sss_in_loop" else "unet"}
    config = TrainConfig.model_validate(
        {"method": method, "network": network, "semisam": {"base": base}, "steps": 7}
    )
    built = type(build_method(build_network(config.network, 2, seed=0), config))
    text = "\n".join(map(inspect.getsource, modules_of(built)))
    for one in built.__mro__:
        for name, member in vars(one).items():
            if isinstance(member, property) and getattr(built, name) is not member:
                text = text.replace(inspect.getsource(member.fget), "")  # overridden: never read
    named = {name for name in SECTIONS if re.search(rf"config\.{name}\b", text)}
    assert named or method == "supervised"
    makes_strong_views = "make_strong(" in "".join(map(inspect.getsource, modules_of(built)))
    assert makes_strong_views is (method in STRONG_VIEWS)
    teacher = build_method(build_network(config.network, 2, seed=0), config).teacher
    assert has_teacher(config) is (teacher is not None)
    other = {
        name: type(getattr(config, name)).model_construct(**getattr(config, name).model_dump())
        for name in SECTIONS
    }
    marked = config.model_copy(update=other)
    kept = {name for name in SECTIONS if getattr(used_settings(marked), name) is other[name]}
    assert named <= kept


def test_a_row_of_settings_that_are_the_defaults_says_so(
    tiny_protocol: Protocol,
    tiny_bench: BenchConfig,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def in_this_process(_: object, orders: list[RunOrder], done: Callable[[], object]) -> None:
        for waiting in orders:
            run(waiting)

    monkeypatch.setattr(stage.Pool, "run", in_this_process)
    variants = {"variants": ("default", "loose", "wide"), "methods": ("mean_teacher",)}
    lines = ("train.steps=2", "train.eval_every=2", "evaluate.worst_cases=0")
    config = tiny_bench.model_copy(update={**variants, "settings": lines, "baseline": False})
    stage.run(tiny_protocol, config, stage.Inputs(dataset=whole), tmp_path)
    page = (tmp_path / stage.TABLE_FILE).read_text("utf-8")
    assert "| mean_teacher | loose (same settings as default) |" in page
    assert "| mean_teacher | wide |" in page
    assert len(list((tmp_path / "trainings").iterdir())) == 2
