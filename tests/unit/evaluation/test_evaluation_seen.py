"""A measured case that had a part in the making of its model: refused, or told on top."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from evaluation_place import Place

from sssflow.contracts.model import SeenImages
from sssflow.errors import UsageError
from sssflow.evaluation import stage
from sssflow.evaluation.config import EvaluateConfig, ReportConfig

FAST = EvaluateConfig(
    bootstrap_resamples=100,
    permutation_flips=100,
    worst_cases=0,
    median_cases=0,
    device="cpu",
    report=ReportConfig(viewer_cases=0),
)


def box_of(out: Path) -> str:
    """Text of the box at the head of the page."""
    page = (out / "report.html").read_text()
    found = re.search(r'<div class="warning".*?</div>', page, re.DOTALL)
    assert found is not None
    return " ".join(found[0].split())


def test_a_model_is_not_measured_on_the_labels_that_it_learned_from(
    place: Place, tmp_path: Path
) -> None:
    seen = SeenImages(labelled=(place.digest_of("patient3_ED"),))
    models = {
        "first": place.models["sss"],
        "second": place.model_that_saw(tmp_path / "model", seen),
    }
    with pytest.raises(UsageError, match="labels it was trained on") as caught:
        stage.run(FAST, place.manifest_path, models, tmp_path / "out")
    assert caught.value.where == "model second: patient3_ED"
    assert caught.value.found.startswith("1 of 6 measured cases")
    assert "evaluate.allow_seen=true" in caught.value.action
    assert not (tmp_path / "out").exists()


def test_allowed_it_is_the_first_note_and_stands_in_the_box(place: Place, tmp_path: Path) -> None:
    seen = SeenImages(
        labelled=(place.digest_of("patient3_ED"),), unlabelled=(place.digest_of("patient4_ES"),)
    )
    config = FAST.model_copy(update={"allow_seen": True})
    model = place.model_that_saw(tmp_path / "model", seen)
    summary = stage.run(config, place.manifest_path, {"mine": model}, tmp_path / "out")
    assert summary.notes[0].startswith("MEASURED ON TRAINING CASES: model mine")
    assert "1 of the 6 measured cases (patient3_ED)" in summary.notes[0]
    assert summary.notes[1].startswith("TRANSDUCTIVE: model mine")
    box = box_of(tmp_path / "out")
    assert f"<strong>{summary.notes[0]}</strong>" in box
    assert f"<strong>{summary.notes[1]}</strong>" in box


def test_images_seen_without_labels_are_measured_with_a_note(place: Place, tmp_path: Path) -> None:
    seen = SeenImages(unlabelled=(place.digest_of("patient2_ED"), place.digest_of("patient2_ES")))
    model = place.model_that_saw(tmp_path / "model", seen)
    summary = stage.run(FAST, place.manifest_path, {"mine": model}, tmp_path / "out")
    assert "2 of the 6 measured cases (patient2_ED, patient2_ES)" in summary.notes[0]
    assert "TRANSDUCTIVE" in box_of(tmp_path / "out")


def test_cases_that_chose_the_step_are_told_in_the_box_whatever_their_role_now(
    place: Place, tmp_path: Path
) -> None:
    chose = SeenImages(selection=(place.digest_of("patient2_ED"),))
    models = {
        "free": place.model_that_saw(tmp_path / "a", SeenImages()),
        "chosen": place.model_that_saw(tmp_path / "b", chose),
    }
    summary = stage.run(FAST, place.manifest_path, models, tmp_path / "out")
    assert summary.roles == ("test",)
    assert "chose the kept training step of chosen: the figures" in box_of(tmp_path / "out")
    assert summary.notes == ()


def test_a_model_that_saw_nothing_of_the_measured_role_is_measured_without_a_word(
    place: Place, tmp_path: Path
) -> None:
    seen = SeenImages(labelled=(place.digest_of("patient0_ED"),))
    config = FAST.model_copy(update={"roles": ("validation",)})
    model = place.model_that_saw(tmp_path / "model", seen)
    summary = stage.run(config, place.manifest_path, {"mine": model}, tmp_path / "out")
    assert summary.notes == ()
    assert "chose the kept" not in box_of(tmp_path / "out")


def test_a_member_of_an_average_that_saw_a_case_is_refused_too(
    place: Place, tmp_path: Path
) -> None:
    seen = SeenImages(labelled=(place.digest_of("patient4_ED"),))
    config = FAST.model_copy(update={"average": True})
    models = {
        "one": place.model_that_saw(tmp_path / "a", SeenImages()),
        "two": place.model_that_saw(tmp_path / "b", seen),
    }
    with pytest.raises(UsageError, match="labels it was trained on"):
        stage.run(config, place.manifest_path, models, tmp_path / "out")


def test_a_model_file_that_does_not_say_what_it_saw_is_told(place: Place, tmp_path: Path) -> None:
    old = {"old": place.models["sss"]}
    summary = stage.run(FAST, place.manifest_path, old, tmp_path / "out")
    assert "does not say which images it was trained on" in summary.notes[0]


def test_a_run_of_another_model_is_refused(
    place: Place, run_files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not the one that its model came from") as caught:
        stage.run(
            FAST,
            place.manifest_path,
            {"mine": place.models["sss"]},
            tmp_path / "out",
            runs={"mine": run_files["supervised"]},
        )
    assert caught.value.where.startswith("mine: ")
    folder = {"mine": place.models["sss"].parent}
    own = {"mine": run_files["sss"]}
    stage.run(FAST, place.manifest_path, folder, tmp_path / "out", runs=own)


def test_predictions_of_models_that_are_no_longer_measured_go(place: Place, tmp_path: Path) -> None:
    stage.run(FAST, place.manifest_path, place.models, tmp_path)
    foreign = tmp_path / "predictions" / "mine" / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("not from an evaluation")
    validation = FAST.model_copy(update={"roles": ("validation",)})
    stage.run(validation, place.manifest_path, {"sss": place.models["sss"]}, tmp_path)
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("predictions/*/*"))
    assert left == [
        "predictions/mine/notes.txt",
        "predictions/sss/patient1_ED.b2nd",
        "predictions/sss/patient1_ES.b2nd",
    ]
