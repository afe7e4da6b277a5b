"""The whole stage on a tiny dataset: files, figures, refusals, determinism."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluation_place import CLASS_NAMES, Place, make_place

from sssflow.contracts.evaluation import EvaluationSummary
from sssflow.contracts.prompts import PromptSet
from sssflow.errors import DataError, UnavailableError, UsageError
from sssflow.evaluation import stage
from sssflow.evaluation.config import EvaluateConfig, ReportConfig
from sssflow.evaluation.metrics import measure_case
from sssflow.evaluation.report.page import PageInput, render
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import verified_path
from sssflow.volume.packed import read_packed

FAST = EvaluateConfig(
    bootstrap_resamples=200,
    permutation_flips=200,
    worst_cases=2,
    median_cases=1,
    device="cpu",
    report=ReportConfig(viewer_cases=3, viewer_side_px=64),
)


class Addresses(HTMLParser):
    """Collects what a page would load or link to, and counts its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.found += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]


@pytest.fixture(scope="module")
def done(
    place: Place, run_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluationSummary, Path]:
    out = tmp_path_factory.mktemp("evaluated")
    return stage.run(FAST, place.manifest_path, place.models, out, runs=run_files), out


def test_the_test_patients_are_measured_and_the_role_is_said(
    done: tuple[EvaluationSummary, Path],
) -> None:
    summary, out = done
    assert summary.roles == ("test",)
    assert (summary.cases, summary.patients, summary.distance_unit) == (6, 3, "mm")
    assert [model.name for model in summary.models] == ["supervised", "sss"]
    assert "6 test cases of 3 patients" in (out / "report.html").read_text()


def test_a_role_named_twice_is_measured_once(place: Place, tmp_path: Path) -> None:
    twice = FAST.model_copy(update={"roles": ("test", "test", "validation")})
    summary = stage.run(twice, place.manifest_path, place.models, tmp_path)
    assert (summary.cases, summary.patients) == (8, 4)


def test_seven_models_have_colours_that_the_style_sheet_knows(place: Place, tmp_path: Path) -> None:
    models = {f"model{number}": place.models["sss"] for number in range(7)}
    stage.run(FAST, place.manifest_path, models, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert set(re.findall(r'class="key (m\d+)"', page)) == {f"m{number}" for number in range(6)}


def test_every_file_is_named_by_digest_and_the_summary_reads_back(
    done: tuple[EvaluationSummary, Path],
) -> None:
    summary, out = done
    assert load_contract(EvaluationSummary, out / stage.SUMMARY_FILE) == summary
    refs = [*summary.files.values(), *summary.overlays]
    refs += [ref for model in summary.predictions.values() for ref in model.values()]
    for ref in refs:
        verified_path(ref, base=out)
    assert set(summary.files) == {"summary", "cases", "report"}
    assert len(summary.overlays) == 3
    assert len(refs) == 3 + 3 + 2 * 6


def test_the_figures_are_those_of_the_stored_predictions(
    done: tuple[EvaluationSummary, Path], place: Place
) -> None:
    summary, out = done
    rows = list(csv.DictReader((out / "metrics" / "cases.csv").open()))
    assert len(rows) == 2 * 6 * 2
    dice: dict[str, list[float]] = {name: [] for name in CLASS_NAMES[1:]}
    for case_id, ref in summary.predictions["sss"].items():
        patient, phase = int(case_id[7]), int(case_id.endswith("ES"))
        found = measure_case(
            read_packed(ref, base=out).astype(np.uint8),
            place.truth_of(patient, phase),
            class_count=3,
            spacing_shw_mm=(8.0, 1.5, 1.25),
            nsd_tolerances=(2.0, 4.0),
        )
        for index, name in enumerate(CLASS_NAMES[1:], start=1):
            (row,) = [
                r
                for r in rows
                if (r["model"], r["case_id"], r["class_name"]) == ("sss", case_id, name)
            ]
            value = found[index].strict["dice"]
            assert value is not None
            assert float(row["strict_dice"]) == pytest.approx(value, abs=1e-6)
            hd95 = found[index].strict["hd95_pooled_mm"]
            assert float(row["strict_hd95_pooled_mm"]) == pytest.approx(hd95, rel=1e-5)
            dice[name].append(value)
    means = [float(np.mean(values)) for values in dice.values()]
    assert summary.models[-1].strict["dice"].value == pytest.approx(np.mean(means))
    assert summary.gain is not None
    first, last = (model.strict["dice"].value for model in summary.models)
    assert first is not None
    assert last is not None
    assert summary.gain.gain == pytest.approx(last - first)
    assert summary.gain.test.startswith("exact paired sign-flip test over 3 patients")


def test_summary_json_keeps_nnunet_keys_and_adds_ours(
    done: tuple[EvaluationSummary, Path],
) -> None:
    _, out = done
    found = json.loads((out / "metrics" / "summary.json").read_text())
    assert set(found["foreground_mean"]) >= {"Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred"}
    assert set(found["mean"]) == {"1", "2"}
    entry = found["metric_per_case"][0]
    assert set(entry) >= {"metrics", "prediction_file", "reference_file"}
    assert entry["prediction_file"].startswith("predictions/sss/")
    assert found["headline_model"] == "sss"
    assert found["conventions"]["strict"]
    per_case = [e["metrics"]["1"]["Dice"] for e in found["metric_per_case"]]
    assert found["mean"]["1"]["Dice"] == pytest.approx(np.mean(per_case))
    both = [found["mean"][k]["Dice"] for k in ("1", "2")]
    assert found["foreground_mean"]["Dice"] == pytest.approx(np.mean(both))
    assert found["paired"][0]["metric"] == "dice"


def test_the_report_needs_nothing_outside_itself(done: tuple[EvaluationSummary, Path]) -> None:
    page = (done[1] / "report.html").read_text()
    seen = Addresses()
    seen.feed(page)
    assert seen.found
    assert all(address.startswith("#") for address in seen.found)
    assert seen.tags["table"] >= 5
    urls = re.findall(r"url\(([^)]{0,24})", page)
    assert len(urls) >= 3 * 4
    assert all(url.startswith("data:image/") for url in urls)
    assert "http:" not in page
    assert "https:" not in page
    assert str(done[1]) not in page
    assert len(page.encode()) < 5_000_000


def test_the_report_says_what_must_not_be_missed(done: tuple[EvaluationSummary, Path]) -> None:
    summary, out = done
    page = (out / "report.html").read_text()
    assert "chose the kept training step" not in page  # the measured role is test
    assert 'data-layer="prompts"' not in page  # nothing to switch off
    for text in (
        "Not a medical device",
        "Only 3 patients",
        "SSL4MIS convention",
        "flatters",
        summary.dataset_digest,
        summary.split_rule,
        "mean Dice of the validation cases",
        "1 min 15 s",
    ):
        assert text in page, text


def test_the_column_of_what_was_left_out_is_there_only_if_something_was(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[PageInput] = []

    def keep(page: PageInput, limit_bytes: int) -> str:
        pages.append(page)
        return render(page)

    monkeypatch.setattr(stage, "render_within", keep)
    stage.run(FAST, place.manifest_path, {"sss": place.models["sss"]}, tmp_path)
    (page,) = pages
    assert "Left out" not in render(page)
    (model,) = page.summary.models
    dice = model.per_class["RV"]["dice"].model_copy(update={"excluded": 73})
    rv = {**model.per_class["RV"], "dice": dice}
    model = model.model_copy(update={"per_class": {**model.per_class, "RV": rv}})
    html = render(replace(page, summary=page.summary.model_copy(update={"models": (model,)})))
    assert html.count("Left out") == 1  # of the classes; the models' tables still need none
    assert html.count(">73</td>") == 1


def test_equal_input_gives_equal_bytes(place: Place, tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        out = tmp_path / name
        stage.run(FAST, place.manifest_path, place.models, out)
        files = sorted(p for p in out.rglob("*") if p.is_file())
        assert len(files) == 4 + 3 + 12
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert digests[0] == digests[1]


def test_a_second_run_leaves_no_overlay_of_the_first(place: Place, tmp_path: Path) -> None:
    more = FAST.model_copy(update={"worst_cases": 4})
    stage.run(more, place.manifest_path, {"sss": place.models["sss"]}, tmp_path)
    summary = stage.run(FAST, place.manifest_path, {"sss": place.models["sss"]}, tmp_path)
    assert len(list((tmp_path / "overlays").glob("*.png"))) == len(summary.overlays) == 3
    assert summary.gain is None


def test_a_folder_that_became_read_only_is_unavailable_and_no_fault_of_the_program(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UnavailableError, match="cannot be written"):
        stage.run(FAST, place.manifest_path, place.models, tmp_path / "out")


def test_without_spacing_everything_is_in_voxels_and_said_so(tmp_path: Path) -> None:
    other = make_place(tmp_path / "data", spacing_known=False, name="phantom <b>set</b>")
    config = FAST.model_copy(update={"roles": ("validation",), "write_nifti": True})
    summary = stage.run(config, other.manifest_path, other.models, tmp_path / "out")
    assert summary.distance_unit == "voxel"
    assert summary.roles == ("validation",)
    assert "hd95_pooled_voxel" in summary.models[0].strict
    header = (tmp_path / "out" / "metrics" / "cases.csv").read_text().splitlines()[0]
    assert "strict_hd95_pooled_voxel" in header
    assert "_mm" not in header
    assert "_ml" not in header
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no voxel spacing" in page
    assert "chose the kept training step of supervised, sss" in page
    assert "drawn by a program" in page
    assert "phantom &lt;b&gt;set" in page
    assert "<b>set" not in page
    assert len(list((tmp_path / "out" / "predictions").rglob("*.nii.gz"))) == 4


def test_sam2_masks_are_compared_with_the_coarse_masks_of_their_prompts(
    place: Place, make_prompted: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    prompts, masks = make_prompted("patient1_ED", "patient1_ES", "patient2_ED", "patient0_ED")
    out = tmp_path / "out"
    summary = stage.run(
        FAST, place.manifest_path, place.models, out, masks=[masks], prompts=[prompts]
    )
    (quality,) = summary.sam2
    # patient0 is labelled for training: it does not count.
    assert quality.cases == 3
    assert quality.sam2.value == pytest.approx(1.0)
    assert quality.coarse is not None
    # One of two equal slices is gone: Dice = 2 * 1 / (1 + 2) for every class and case.
    assert quality.coarse.value == pytest.approx(2 / 3)
    assert quality.gain is not None
    assert quality.gain.gain == pytest.approx(1 / 3)
    page = (out / "report.html").read_text()
    assert "SAM-2 mask" in page
    assert "coarse mask" in page
    assert 'data-layer="prompts"' in page


def test_masks_outside_the_measured_role_are_shown_but_not_measured(
    place: Place, make_prompted: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    prompts, masks = make_prompted("patient1_ED", coarse=False)
    out = tmp_path / "out"
    summary = stage.run(
        FAST, place.manifest_path, place.models, out, masks=[masks], prompts=[prompts]
    )
    assert summary.cases == 6
    assert summary.sam2[0].coarse is None
    assert "patient1_ED" in summary.predictions["sss"]
    page = (out / "report.html").read_text()
    assert "patient1_ED" in page
    assert "not in the means" in page
    assert "patient1_ED" not in (out / "metrics" / "cases.csv").read_text()


def test_masks_of_another_dataset_are_refused(
    place: Place, make_prompted: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    prompts, masks = make_prompted("patient1_ED")
    foreign = load_contract(PromptSet, prompts).model_copy(update={"dataset_digest": "f" * 64})
    save_contract(foreign, prompts)
    with pytest.raises(DataError, match="another dataset"):
        stage.run(
            FAST,
            place.manifest_path,
            place.models,
            tmp_path / "out",
            masks=[masks],
            prompts=[prompts],
        )
    assert not (tmp_path / "out").exists()


def test_the_same_masks_twice_are_refused(
    place: Place, make_prompted: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    _, masks = make_prompted("patient1_ED")
    with pytest.raises(DataError, match="same case"):
        stage.run(FAST, place.manifest_path, place.models, tmp_path / "out", masks=[masks, masks])


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a b"])
def test_a_model_name_that_is_no_folder_name_is_refused(
    place: Place, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="model name"):
        stage.run(FAST, place.manifest_path, {name: place.models["sss"]}, tmp_path)


def test_missing_models_roles_and_devices_are_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one model"):
        stage.run(FAST, place.manifest_path, {}, tmp_path)
    with pytest.raises(UsageError, match="no model"):
        stage.run(
            FAST, place.manifest_path, place.models, tmp_path, runs={"other": tmp_path / "run.json"}
        )
    bad = FAST.model_copy(update={"device": "abacus"})
    with pytest.raises(UsageError, match="no such device"):
        stage.run(bad, place.manifest_path, place.models, tmp_path)
    untested = place.manifest.model_copy(update={"cases": place.manifest.cases[:2]})
    lonely = save_contract(untested, tmp_path / "manifest.json")
    with pytest.raises(DataError, match=r"No case can be measured(.*\n)+.*--set evaluate\.roles="):
        stage.run(FAST, lonely, place.models, tmp_path)


def test_a_model_of_other_classes_is_refused(place: Place, tmp_path: Path) -> None:
    other = place.manifest.model_copy(update={"class_names": ("background", "RV", "LV")})
    path = save_contract(other, tmp_path / "manifest.json")
    with pytest.raises(DataError, match="other classes"):
        stage.run(FAST, path, place.models, tmp_path / "out")


def test_a_page_too_large_loses_viewer_cases_and_says_so(place: Place, tmp_path: Path) -> None:
    pages = []
    for limit_mb in (4.8, 0.1):
        report = ReportConfig(viewer_cases=6, viewer_side_px=256, size_limit_mb=limit_mb)
        config = FAST.model_copy(update={"report": report})
        stage.run(config, place.manifest_path, place.models, tmp_path)
        pages.append((tmp_path / "report.html").read_text())
    whole, cut = pages
    assert len(whole.encode()) > 100_000 >= len(cut.encode())
    assert whole.count("<figure>") == 6 * 4 > cut.count("<figure>")
    assert "left out of this viewer" in cut
    assert "left out of this viewer" not in whole
    # Numbers are never dropped.
    assert cut.count("<tr>") == whole.count("<tr>")
