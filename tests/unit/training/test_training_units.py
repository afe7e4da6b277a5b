"""An 8-bit image is read by no intensity rule that needs the scan's own units."""

from __future__ import annotations

import shutil

import pytest

from sssflow.contracts.dataset import DatasetManifest, Quantisation
from sssflow.errors import UsageError
from sssflow.evaluation import stage as evaluation
from sssflow.evaluation.config import EvaluateConfig
from sssflow.prompts import stage as prompts
from sssflow.prompts.config import PromptConfig
from sssflow.sam import adapt
from sssflow.sam import stage as sam
from sssflow.sam.config import AdaptConfig, SamConfig
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.training import stage

RULE = {"size_hw": [32, 32], "intensity": {"kind": "none"}}
REFUSED = "stored in 8 bits"


@pytest.fixture
def eight_bit(tiny, tmp_path):
    """The tiny dataset, said to be stored in 8 bits."""
    folder = tmp_path / "dataset"
    shutil.copytree(tiny.dataset.parent, folder)
    manifest = load_contract(DatasetManifest, tiny.dataset)
    how = Quantisation(low=-3.0, high=9.0, clipped_share=0.0, rms_error=0.001)
    cases = tuple(case.model_copy(update={"quantised": how}) for case in manifest.cases)
    return save_contract(manifest.model_copy(update={"cases": cases}), folder / "manifest.json")


def test_training_refuses_it_for_a_rule_in_own_units_alone(eight_bit, tiny_config, tmp_path):
    with pytest.raises(UsageError, match=REFUSED):
        stage.run(tiny_config(preprocessing=RULE), eight_bit, tmp_path / "none")
    stage.run(tiny_config(steps=2, eval_every=2), eight_bit, tmp_path / "percentile")


def test_a_model_in_own_units_neither_scores_nor_prompts_it(eight_bit, tiny, tiny_config, tmp_path):
    stage.run(tiny_config(steps=2, eval_every=2, preprocessing=RULE), tiny.dataset, tmp_path / "r")
    model = tmp_path / "r" / "model" / "model.json"
    with pytest.raises(UsageError, match=REFUSED):
        evaluation.run(
            EvaluateConfig(roles=("validation",)), eight_bit, {"m": model}, tmp_path / "scores"
        )
    with pytest.raises(UsageError, match=REFUSED):
        prompts.run(PromptConfig(), eight_bit, model, tmp_path / "prompts")


def test_sam2_does_not_see_it_by_such_a_rule(eight_bit, tiny_config, tmp_path):
    stage.run(tiny_config(steps=2, eval_every=2), eight_bit, tmp_path / "r")
    model = tmp_path / "r" / "model" / "model.json"
    prompts.run(PromptConfig(), eight_bit, model, tmp_path / "prompts")
    config = SamConfig.model_validate({"intensity": {"kind": "window"}, "input_size": 64})
    asked = tmp_path / "prompts" / "prompts.json"
    with pytest.raises(UsageError, match=REFUSED):
        sam.run(config, eight_bit, asked, tmp_path / "masks")
    with pytest.raises(UsageError, match=REFUSED):
        adapt.run(AdaptConfig(steps=1), config, eight_bit, tmp_path / "adapted")
