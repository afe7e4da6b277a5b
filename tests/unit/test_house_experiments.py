"""The committed experiments are valid, fair, and say what they claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from sssflow.bench.protocol import load_protocol
from sssflow.bench.variants import find_variant
from sssflow.configuration import load_config
from sssflow.experiment import ExperimentConfig

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "src" / "sssflow" / "cli" / "demo.yaml"
HEADLINES = {"la-lite": "mean_teacher", "acdc-in-loop": "sss_in_loop"}
"""Headline methods other than staged sss, which has no 3-D form."""
EXPERIMENTS = [*sorted((ROOT / "configs").glob("*.yaml")), DEMO]


def test_there_are_the_two_acdc_experiments() -> None:
    assert {p.stem for p in EXPERIMENTS} >= {"acdc", "acdc-lite", "demo"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_is_valid_and_its_comparison_is_fair(path: Path) -> None:
    experiment = load_config(ExperimentConfig, path)
    warmup, baseline, headline = experiment.warmup, experiment.baseline, experiment.train
    assert baseline.method == "supervised"
    assert headline.method == HEADLINES.get(path.stem, "sss")
    for key in ("network", "preprocessing", "batch_labelled", "seed", "optimiser", "augmentation"):
        assert getattr(baseline, key) == getattr(headline, key) == getattr(warmup, key), key
    # The headline starts from the warm-up's weights: the baseline gets the steps of both.
    assert baseline.steps == warmup.steps + headline.steps


def test_acdc_follows_the_published_protocol() -> None:
    experiment = load_config(ExperimentConfig, ROOT / "configs" / "acdc.yaml")
    train = experiment.train
    assert experiment.ingest.split.labelled_slices == 136
    assert train.preprocessing.size_hw == (256, 256)
    assert train.preprocessing.image_interpolation == "nearest"
    assert (train.batch_labelled, train.batch_unlabelled) == (12, 12)
    assert experiment.baseline.steps == 30_000
    optimiser = train.optimiser
    assert (optimiser.kind, optimiser.learning_rate, optimiser.momentum) == ("sgd", 0.01, 0.9)
    assert (optimiser.weight_decay, optimiser.schedule, optimiser.poly_power) == (1e-4, "poly", 0.9)


def test_published_protocols_weigh_every_method_as_its_code_does() -> None:
    trains = {name: load_protocol(name).experiment.train for name in ("acdc", "la", "la-published")}
    trains["config"] = load_config(ExperimentConfig, ROOT / "configs" / "acdc.yaml").train
    for name, train in trains.items():
        for section in (train.mean_teacher, train.ua_mt):
            found = (section.consistency_weight, section.ramp_share, section.noise_on)
            assert found == (0.1, 1.0, "teacher"), name
        assert train.semisam.weight == 0.05, name
        falls = (train.optimiser.schedule, train.optimiser.drop_every)
        assert falls == ("step" if name.startswith("la") else "poly", 2500), name
    for train in (trains["acdc"], trains["config"]):
        assert (train.fixmatch.unlabelled_weight, train.fixmatch.ramp_share) == (0.1, 1.0)
        assert (train.unimatch_v2.ema_decay, train.unimatch_v2.confidence_threshold) == (
            0.996,
            0.95,
        )


def test_the_recommended_recipe_is_the_variant_of_that_name_on_the_same_protocol() -> None:
    ours = load_config(ExperimentConfig, ROOT / "configs" / "acdc-recommended.yaml")
    plain = load_config(ExperimentConfig, ROOT / "configs" / "acdc.yaml")
    variant = find_variant("recommended").set
    assert len(variant) == 4
    for key, value in variant.items():
        for section in ("train", "baseline", "warmup") if key.startswith("train.") else ("",):
            found = ours
            for part in key.replace("train.", f"{section}.", 1).split("."):
                found = getattr(found, part)
            assert found == value, key
    for key in ("preprocessing", "optimiser", "steps", "batch_labelled", "batch_unlabelled"):
        assert getattr(ours.train, key) == getattr(plain.train, key), key
    assert ours.ingest.split.labelled_slices == 68


def test_the_demo_draws_its_own_scans_and_holds_patients_back() -> None:
    experiment = load_config(ExperimentConfig, DEMO)
    assert experiment.require_phantoms().kind == "hearts"
    assert experiment.ingest.split.labelled == 2
    assert experiment.ingest.split.test
