"""Adaptation: only labelled cases are shown, equal runs give equal bytes, misuse is refused."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from sssflow.contracts.dataset import DatasetManifest
from sssflow.contracts.model import IntensityRule
from sssflow.contracts.prompts import CasePrompts, PromptSet
from sssflow.contracts.weights import PromptableWeights
from sssflow.errors import DataError, UsageError
from sssflow.sam import adapt, stage
from sssflow.sam.config import AdaptConfig, SamConfig
from sssflow.sam.pretrain_data import labelled_source
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.volume.packed import write_packed

SHORT = AdaptConfig(steps=1)


def test_no_steps_and_official_sizes_are_refused(tmp_path) -> None:
    for config, sam in ((AdaptConfig(steps=0), SamConfig()), (SHORT, SamConfig(size="tiny"))):
        with pytest.raises(UsageError, match="Only nano"):
            adapt.run(config, sam, tmp_path / "manifest.json", tmp_path / "out")


def test_masks_of_other_roles_are_not_shown(small_dataset, tmp_path) -> None:
    dataset, _ = small_dataset(1)
    dataset.write_text(dataset.read_text().replace('"labelled"', '"validation"'))
    with pytest.raises(DataError, match="no labelled training case"):
        adapt.run(SHORT, SamConfig(), dataset, tmp_path / "out")
    assert not (tmp_path / "out" / adapt.ADAPTED_FILE).exists()


def test_equal_adaptations_are_equal_and_serve_the_infer_stage(small_dataset, tmp_path) -> None:
    dataset, prompts = small_dataset(1)
    first = adapt.run(SHORT, SamConfig(), dataset, tmp_path / "a")
    assert adapt.run(SHORT, SamConfig(), dataset, tmp_path / "b").digest == first.digest
    assert load_contract(PromptableWeights, tmp_path / "a" / adapt.ADAPTED_FILE) == first
    sam = SamConfig(input_size=64)
    masks = stage.run(sam, dataset, prompts, tmp_path / "m", weights=tmp_path / "a" / "sam2.json")
    plain = stage.run(sam, dataset, prompts, tmp_path / "n")
    assert masks.model_digest == first.weights.sha256 != plain.model_digest
    assert masks.config_digest == plain.config_digest, "the place of the weights is no setting"


def test_harmed_weights_are_refused_and_made_again_when_asked_for(small_dataset, tmp_path) -> None:
    dataset, prompts = small_dataset(1)
    first = adapt.run(SHORT, SamConfig(), dataset, tmp_path / "a")
    with (tmp_path / "a" / "nano.safetensors").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="another content"):
        stage.run(SamConfig(), dataset, prompts, tmp_path / "m", weights=tmp_path / "a/sam2.json")
    assert adapt.run(SHORT, SamConfig(), dataset, tmp_path / "a") == first
    stage.run(SamConfig(), dataset, prompts, tmp_path / "m", weights=tmp_path / "a/sam2.json")


def test_the_same_call_again_trains_nothing_and_another_one_is_refused(
    small_dataset, tmp_path, monkeypatch
) -> None:
    dataset, _ = small_dataset(1)
    first = adapt.run(SHORT, SamConfig(), dataset, tmp_path / "a")

    def trained(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(adapt.pretrain, "run", trained)
    assert adapt.run(SHORT, SamConfig(), dataset, tmp_path / "a") == first
    longer = AdaptConfig(steps=2)
    with pytest.raises(UsageError, match="other weights, data or settings"):
        adapt.run(longer, SamConfig(), dataset, tmp_path / "a")
    assert load_contract(PromptableWeights, tmp_path / "a" / adapt.ADAPTED_FILE) == first


def test_the_intensity_rule_of_the_infer_stage_is_that_of_the_adaptation(
    small_dataset, tmp_path
) -> None:
    dataset, _ = small_dataset(1)
    dark = SamConfig(intensity=IntensityRule(kind="window", window_low=0, window_high=1e4))
    plain = adapt.run(SHORT, SamConfig(), dataset, tmp_path / "a")
    ruled = adapt.run(SHORT, dark, dataset, tmp_path / "b")
    assert ruled.weights.sha256 != plain.weights.sha256
    assert "intensity window" in (tmp_path / "b" / "nano.json").read_text()
    with pytest.raises(UsageError, match="other weights, data or settings"):
        adapt.run(SHORT, dark, dataset, tmp_path / "a")
    assert adapt.run(SHORT, dark, dataset, tmp_path / "b") == ruled


def test_without_a_rule_the_digest_of_an_adaptation_is_that_of_its_settings() -> None:
    assert SHORT.digest_with(None) == SHORT.digest()
    digests = {SHORT.digest_with(IntensityRule(kind=kind)) for kind in ("minmax", "zscore")}
    assert len(digests | {SHORT.digest()}) == 3


def test_sam2_is_never_shown_values_beyond_0_to_1(small_dataset, tmp_path) -> None:
    dataset, _ = small_dataset(1)
    with pytest.raises(ValidationError, match="values of 0 to 1"):
        SamConfig(intensity=IntensityRule(kind="zscore"))
    raw = IntensityRule(kind="none")
    manifest = load_contract(DatasetManifest, dataset)
    shape = manifest.cases[0].grid.shape_shw
    image = write_packed(dataset.parent / "raw.b2nd", np.full(shape, 300), base=dataset.parent)
    case = manifest.cases[0].model_copy(update={"image": image})
    save_contract(manifest.model_copy(update={"cases": (case, *manifest.cases[1:])}), dataset)
    with pytest.raises(UsageError, match="by the rule none"):
        labelled_source(dataset, 1.0, raw)
    prompts = PromptSet(
        dataset_digest=load_contract(DatasetManifest, dataset).digest,
        model_digest="0" * 64,
        method="pcsw",
        config_digest="0" * 64,
        class_names=manifest.class_names,
        cases=(CasePrompts(case_id=case.case_id, shape_shw=shape, objects=()),),
    )
    given = save_contract(prompts, tmp_path / "prompts.json")
    with pytest.raises(UsageError, match="300 to 300 by the rule none"):
        stage.run(SamConfig(intensity=raw), dataset, given, tmp_path / "out")
    assert stage.run(SamConfig(), dataset, given, tmp_path / "out").cases


def test_labelled_cases_are_read_by_the_rule_that_is_given(small_dataset) -> None:
    dataset, _ = small_dataset(1)
    rule = IntensityRule(kind="window", window_low=0, window_high=1e4)
    (plain, _), (dark, _) = (
        labelled_source(dataset, 1.0, given).cases[0] for given in (None, rule)
    )
    assert plain.max() == 1
    assert dark.max() < 0.5
