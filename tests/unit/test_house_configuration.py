"""Configuration refuses what it does not know and says what was meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from sssflow.configuration import Config, dump_yaml, load_config, parse_config
from sssflow.errors import UsageError
from sssflow.experiment import ExperimentConfig


class Optimiser(Config):
    learning_rate: float = Field(0.1, gt=0, description="Rate.")
    momentum: float = Field(0.9, description="Momentum.")


class Training(Config):
    steps: int = Field(10, ge=1, description="Steps.")
    optimiser: Optimiser = Field(Optimiser(), description="Optimiser.")
    extra: Optimiser | None = Field(None, description="Second one.")


class Experiment(Config):
    train: Training = Field(Training(), description="Training.")
    name: str = Field("x", description="Name.")


def refusal(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(Experiment, path, overrides)
    assert caught.value.exit_code == 64
    return str(caught.value)


def test_an_unknown_key_names_the_nearest_valid_one_at_its_own_depth() -> None:
    assert "train.step: unknown key; did you mean 'steps'?" in refusal("train.step=5")
    message = refusal("train.optimiser.learning_rat=1")
    assert "did you mean 'learning_rate'?" in message
    assert "did you mean 'momentum'?" in refusal("train.extra.momentun=1")


def test_a_key_that_resembles_nothing_gets_the_list() -> None:
    assert "valid keys are name, train" in refusal("zzzz=1")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("layout=nnunet", "layout: unknown key; did you mean 'ingest.layout'?"),
        ("train.layout=nnunet", "did you mean 'ingest.layout'?"),
        ("roles=[validation]", "did you mean 'prompts.roles' or 'evaluate.roles'?"),
        ("split.labelled=2", "split: unknown key; did you mean 'ingest.split'?"),
        (
            "steps=500",
            "did you mean 'warmup.steps', 'baseline.steps', 'train.steps' or 2 more?",
        ),
        ("train.network.weights=x", "did you mean 'train.network.sam2.weights', "),
        ("pipelin.shards=1", "did you mean 'pipeline'?"),
        ("channel_names=1", "channel_names: unknown key; valid keys are adapt, "),
        ("checkpoints=3", "checkpoints: unknown key; valid keys are adapt, "),
        ("train.batch=2", "valid keys are augmentation, batch_labelled, "),
    ],
)
def test_a_key_without_its_section_names_the_whole_key_and_never_a_stranger(
    override: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(ExperimentConfig, None, [override])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("evaluate.roles=test", "Input should be a list, for example [test] (found 'test')"),
        ("evaluate.roles={a: 1}", "Input should be a list (found {'a': 1})"),
        (
            "evaluate.roles=[unlabelled]",
            "Input should be 'labelled', 'validation' or 'test' (found 'unlabelled')",
        ),
        ("train.preprocessing.size_hw=8", "Input should be a list of 2 values (found 8)"),
        ("train.preprocessing.size_hw=[8]", "Input should be a list of 2 values (found [8])"),
        ("train.preprocessing.size_hw=[]", "Input should be a list of 2 values (found [])"),
        (
            "train.preprocessing.size_hw=[8,8,8]",
            "The list should have at most 2 items, not 3 (found [8, 8, 8])",
        ),
        ("prompts.roles=[]", "The list should have at least 1 item, not 0 (found [])"),
        ("ingest.split.labelled=-1", "labelled must be above 0, not -1"),
        ("train=5", "Input should be a section, key by key (found 5)"),
        ("pipeline.nodes={nodes: 2, image: x}", "This key must be given"),
    ],
)
def test_a_value_that_does_not_fit_is_told_without_words_of_python(
    override: str, told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(ExperimentConfig, None, [override])
    _, _, said = caught.value.found.partition(": ")
    assert said == told


def test_all_mistakes_are_told_at_once() -> None:
    message = refusal("train.step=5", "train.steps=0", "name=[1]")
    assert "train.step:" in message
    assert "train.steps: Input should be greater than or equal to 1 (found 0)" in message
    assert "name: Input should be a valid string" in message


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  steps: 3\nname: file\n")
    found = load_config(Experiment, path, ["train.steps=4", "train.steps=5", "name='7'"])
    assert found.train.steps == 5
    assert found.name == "7"
    assert found.train.optimiser == Optimiser()


@pytest.mark.parametrize("text", ["train.steps", "=5", ""])
def test_an_override_without_a_key_or_an_equals_sign_is_refused(text: str) -> None:
    assert "key=value" in refusal(text)


def test_an_override_below_a_plain_value_is_refused() -> None:
    assert "below a plain value" in refusal("name=a", "name.b=1")


def test_what_is_dumped_is_read_back_equal(tmp_path: Path) -> None:
    config = parse_config(Experiment, {"train": {"steps": 7, "extra": {"momentum": 0.5}}})
    path = tmp_path / "a.yaml"
    path.write_text(dump_yaml(config))
    assert load_config(Experiment, path) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n", "must be a mapping"),
        ("a: [\n", "not valid YAML"),
        ("a: 1\nb:\n  c: 2\n d: [3]\n", "a.yaml, line 4, column 2"),
        ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (b"\xff\xfe\xff", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(
    tmp_path: Path, text: str | bytes | None, words: str
) -> None:
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(path=path)
    assert words in message
    assert str(path) in message


def test_an_override_of_an_aliased_section_leaves_the_other_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  optimiser: &o {momentum: 0.5}\n  extra: *o\n")
    found = load_config(Experiment, path, ["train.extra.momentum=0.1"]).train
    assert found.optimiser.momentum == 0.5
    assert found.extra == Optimiser(momentum=0.1)


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  steps: 111\nname: y\ntrain:\n  extra: {}\n")
    message = refusal(path=path)
    assert f"{path}, line 4, column 1" in message
    assert "train a second time in its section; first in line 1" in message
    assert "optimiser" in refusal("train.optimiser={momentum: 0.5, momentum: 0.6}")


@pytest.mark.parametrize(
    "text",
    ["train: &a\n  extra: *a\n", "name: " + 3000 * "[" + 3000 * "]" + "\n"],
    ids=["alias", "depth"],
)
def test_a_section_that_holds_itself_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert str(path) in refusal(path=path)


def test_a_key_may_stand_over_one_that_a_merged_section_brings(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "train:\n  optimiser: &o {momentum: 0.5, learning_rate: 0.2}\n"
        "  extra: {<<: *o, momentum: 0.6}\n"
    )
    found = load_config(Experiment, path).train
    assert found.extra == Optimiser(momentum=0.6, learning_rate=0.2)
    deep = "train:\n  optimiser: {<<: &p {momentum: 0.5}, momentum: 0.7}\n  extra: {<<: *p}\n"
    path.write_text(deep)
    assert load_config(Experiment, path).train.extra == Optimiser(momentum=0.5)


@pytest.mark.parametrize("text", ["2024-02-03", "2024-02-30"])
def test_a_name_that_looks_like_a_date_is_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"name: {text}\n")
    assert load_config(Experiment, path) == Experiment(name=text)
    found = load_config(Experiment, None, [f"name={text}"])
    assert found == Experiment(name=text)
    path.write_text(dump_yaml(found))
    assert load_config(Experiment, path) == found


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("")
    assert load_config(Experiment, path) == Experiment()


def test_settings_cannot_be_changed_and_equal_settings_have_equal_digests() -> None:
    config = Experiment()
    with pytest.raises(ValidationError):
        config.name = "y"
    assert config.digest() == Experiment(train=Training(steps=10)).digest()
    assert config.digest() != Experiment(train=Training(steps=11)).digest()
    assert len(config.digest()) == 64


class Tree(Config):
    depth: int = Field(1, description="Depth.")
    width: int = Field(1, description="Width.")


class Part(Config):
    """A section with two keys and a section of its own."""

    size: int = Field(3, description="Size.")
    kind: str = Field("plain", description="Kind.")
    tree: Tree = Field(Tree(), description="Deeper.")


class Whole(Config):
    """One section whose default is not its class's."""

    part: Part = Field(Part(kind="special", tree=Tree(depth=9)), description="The section.")


def test_a_section_given_in_part_keeps_what_its_default_sets_beside() -> None:
    assert load_config(Whole, None, ["part.size=5"]).part == Whole().part.model_copy(
        update={"size": 5}
    )
    assert parse_config(Whole, {"part": {"tree": {"width": 2}}}).part.tree == Tree(depth=9, width=2)
    assert parse_config(Whole, {"part": {"kind": "plain"}}).part.kind == "plain"
    assert parse_config(Whole, {"part": Part(size=8)}).part.kind == "plain"
    with pytest.raises(UsageError, match="unknown key"):
        parse_config(Whole, {"part": {"sice": 1}})


def test_every_section_of_the_experiment_is_its_default_when_nothing_of_it_is_given() -> None:
    names = [name for name in ExperimentConfig.model_fields if name not in ("name", "phantoms")]
    assert len(names) == 11
    assert parse_config(ExperimentConfig, {name: {} for name in names}) == ExperimentConfig()
    assert load_config(ExperimentConfig, None, ["train.steps=7"]).train.method == "sss"


class Several(Config):
    """Values that pydantic reports in more than one line."""

    amount: int | float | Literal["all"] = Field("all", description="Union.")
    sides: tuple[int, ...] = Field((1,), min_length=1, description="A list of at least one.")
    named: dict[str, int] = Field({}, description="Free keys.")


def refused(path: Path | None, *overrides: str, **options: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(
            Several, path, overrides, options={f"--{name}": text for name, text in options.items()}
        )
    return str(caught.value)


def test_a_union_and_a_list_are_told_once_per_key() -> None:
    assert (
        "found: amount: Input should be a valid integer or a valid number or 'all' (found 'x')\n"
        in refused(None, "amount=x")
    )
    message = refused(None, "sides=[a]")
    assert "sides.0: Input should be a valid integer" in message
    assert "at least 1 item" not in message
    assert "at least 1 item" in refused(None, "sides=[]")
    message = refused(None, "named={a: x, b: x}")
    assert "named.a: " in message
    assert "named.b: " in message


def test_the_option_or_the_file_that_held_the_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("amount: 3\n")
    assert "where: --set sides\n" in refused(path, "sides=[a]")
    assert "where: --sizes\n" in refused(path, "sides=[2]", sizes="sides=[a]")
    path.write_text("amount: x\n")
    assert f"where: {path}\n" in refused(path, "sides=[1]")
    assert f"where: {path}, --set sides\n" in refused(path, "sides=[a]")


class Ordered(Config):
    """A rule over two keys."""

    low: int = Field(1, description="Low.")
    high: int = Field(2, description="High.")

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Pair(Config):
    """A section with such a rule."""

    part: Ordered = Field(Ordered(), description="Section.")
    name: str = Field("x", description="Name.")


def test_a_rule_over_keys_names_each_place_that_held_one(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("part: {low: 1}\n")
    with pytest.raises(UsageError, match=f"where: --set part.high, {path}\n"):
        load_config(Pair, path, ["part.high=0"])
    path.write_text("name: y\n")
    with pytest.raises(UsageError, match=r"where: --set part\.high\n"):
        load_config(Pair, path, ["part.high=0"])


@pytest.mark.parametrize("value", ["9" * 6000, "!!int many", "!!bool perhaps", "!!timestamp now"])
def test_a_value_that_python_refuses_is_told_with_its_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"name: y\ntrain:\n  steps: {value}\n")
    message = refusal(path=path)
    assert "a.yaml, line 3, column 10" in message
    assert "a value that cannot be read" in message


def test_a_configuration_may_come_from_a_pipe_but_not_from_a_device(tmp_path: Path) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        file.write("train: {steps: 3}")
    assert load_config(Experiment, Path(f"/dev/fd/{read}")).train.steps == 3
    os.close(read)
    assert "more than 4194304 bytes" in refusal(path=Path("/dev/zero"))


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", ["train.sss.mask_min_object_score", "ingest.split.labelled"])
def test_a_number_is_finite(key: str, value: str) -> None:
    """As JSON, which records and digests are made of, these would be null: another setting."""
    with pytest.raises(UsageError, match="finite"):
        load_config(ExperimentConfig, None, [f"{key}={value}"])
