"""The model card holds what the records hold, and says where they hold nothing."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from sssflow.contracts.bundle import ParityFigure, TensorContract
from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.evaluation import EvaluationSummary, Figure, ModelFigures, PairedGain
from sssflow.contracts.run import RunRecord
from sssflow.export.config import ExportConfig
from sssflow.export.model_card import NOT_RECORDED, CardFacts, model_card
from sssflow.networks.trained import load_model
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import reference


@pytest.fixture
def bare(ready) -> CardFacts:
    loaded = load_model(ready.model)
    image = TensorContract(name="x", dtype="float32", shape=("b", 1, "r", "c"), meaning="in")
    logits = TensorContract(name="y", dtype="float32", shape=("b", 3, "r", "c"), meaning="out")
    parity = ParityFigure(
        shape=(4, 1, 16, 24), source="case d", max_abs_difference=2.5e-6, tolerance=1e-4,
        masks_equal=True,
    )  # fmt: skip
    return CardFacts(
        model=loaded.description,
        model_digest=loaded.digest,
        manifest=load_contract(DatasetManifest, ready.dataset),
        config=ExportConfig(intended_use="Only for | tests."),
        inputs=(image,),
        outputs=(logits,),
        parity=(parity,),
        spacing_shw_mm=(9.0, 1.25, 1.25),
    )


def with_records(facts: CardFacts, ready, *, model_digest: str | None = None) -> CardFacts:
    record = RunRecord(
        method="sss", config={}, config_digest="1" * 64, seed=4711, versions={"torch": "9.9"},
        inputs={}, steps=321, best_step=300, selection="chosen on validation", metrics={},
        model=reference(ready.model), wall_time_s=61.7, device="a named device",
        notes=("Oracle prompts were used.",),
    )  # fmt: skip
    figures = ModelFigures(
        name="sss", model_digest=model_digest or facts.model_digest, method="sss", step=300,
        strict={"dice": Figure(value=0.8125, low=0.75, high=0.875, count=4)},
        ssl4mis={"hd95_pooled_mm": Figure(value=None)},
        per_class={"ring": {"dice": Figure(value=0.5)}},
    )  # fmt: skip
    gain = PairedGain(
        metric="dice", baseline="supervised", headline="sss", gain=0.0625, low=0.01, high=0.1,
        p_value=0.03, test="sign flips", patients=2,
    )  # fmt: skip
    summary = EvaluationSummary(
        dataset_name="made-by-hand", dataset_digest=facts.manifest.digest, split_rule="by hand",
        roles=("test",), cases=4, patients=2, distance_unit="mm", class_names=("background",),
        config={}, config_digest="1" * 64, versions={}, conventions={"strict": "misses count"},
        models=(figures,), gain=gain, files={},
    )  # fmt: skip
    return CardFacts(**{**facts.__dict__, "run": record, "evaluation": summary})


def test_the_card_has_the_headings_that_readers_of_model_cards_know(bare) -> None:
    headings = re.findall(r"^## (.+)$", model_card(bare), re.MULTILINE)
    assert headings == [
        "Model details",
        "Uses",
        "Bias, risks and limitations",
        "How to get started",
        "Training details",
        "Evaluation",
        "Parity with PyTorch",
        "Data format",
    ]


def test_the_front_matter_is_yaml(bare) -> None:
    _, front, _ = model_card(bare).split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["library_name"] == "onnx"
    assert found["datasets"] == ["made-by-hand"]
    assert found["license"] == NOT_RECORDED


def test_without_records_the_card_says_so_and_invents_nothing(bare) -> None:
    text = model_card(bare)
    assert f"| Seed | {NOT_RECORDED} |" in text
    assert f"| Wall time | {NOT_RECORDED} |" in text
    assert f"Figures of this model: {NOT_RECORDED}." in text
    assert "The accuracy of this model was not measured." in text


def test_with_records_the_card_holds_their_figures(bare, ready) -> None:
    text = model_card(with_records(bare, ready))
    assert "| Seed | 4711 |" in text
    assert "| Steps | 321 |" in text
    assert "| Wall time | 62 s |" in text
    assert "| dice | 0.8125 (0.75 to 0.875) | – |" in text
    assert "| hd95_pooled_mm | – | not recorded |" in text
    assert "| ring | 0.5 |" in text
    assert "Against supervised: dice +0.0625 (from 0.01 to 0.1), p = 0.030; sign flips." in text
    assert "measured on 2 patient(s) only" in text
    assert "* Oracle prompts were used." in text


def test_the_card_says_what_was_done_beside_the_graph_where_it_was_measured(bare, ready) -> None:
    facts = with_records(bare, ready)
    assert "not figures of the graph alone" not in model_card(facts)
    treated = {"test_time_flips": True, "largest_component": True, "window": None}
    summary = facts.evaluation.model_copy(update={"config": treated})
    text = model_card(CardFacts(**{**facts.__dict__, "evaluation": summary}))
    assert (
        "These are not figures of the graph alone: the probabilities of four in-plane mirror "
        "images were averaged; of every class only its largest piece was kept."
    ) in text


def test_figures_of_another_model_are_not_taken_for_this_one(bare, ready) -> None:
    text = model_card(with_records(bare, ready, model_digest="f" * 64))
    assert "0.8125" not in text
    assert f"Figures of this model: {NOT_RECORDED}." in text


def test_the_data_format_is_json_with_a_name_for_each_channel(bare) -> None:
    block = re.search(r"```json\n(.+?)\n```", model_card(bare), re.DOTALL)
    assert block is not None
    outputs = json.loads(block[1])["network_data_format"]["outputs"]
    assert outputs["y"]["channel_def"] == {"0": "background", "1": "ring", "2": "disc"}
    assert outputs["y"]["num_channels"] == 3


def test_a_bar_in_a_cell_does_not_break_the_table(bare) -> None:
    manifest = bare.manifest.model_copy(update={"split_rule": "a | b"})
    text = model_card(CardFacts(**{**bare.__dict__, "manifest": manifest}))
    assert r"| Split | a \| b |" in text


def test_parity_is_told_as_measured(bare) -> None:
    assert "| 4×1×16×24 | case d | 2.50e-06 | 1e-04 | equal |" in model_card(bare)
