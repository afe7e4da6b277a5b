"""Which cases are shown, and under which word."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sssflow.contracts.dataset import Role
from sssflow.evaluation import pictures
from sssflow.evaluation.config import EvaluateConfig, ReportConfig
from sssflow.evaluation.metrics import measure_case
from sssflow.evaluation.results import CaseResult, ModelResult


def result_of(found: dict[str, int | None]) -> ModelResult:
    """Cases whose truth has 8 voxels, of which so many are found; None: empty on both sides."""
    cases = []
    for case_id, voxels in found.items():
        truth, prediction = np.zeros((2, 1, 4, 4), np.uint8)
        truth[:, :2] = voxels is not None
        prediction.reshape(-1)[: voxels or 0] = 1
        measures = measure_case(
            prediction, truth, class_count=2, spacing_shw_mm=(1, 1, 1), nsd_tolerances=(1.0,)
        )
        cases.append(CaseResult(case_id, case_id, Role.TEST, measures))
    return ModelResult("model", "0" * 64, "supervised", 1, tuple(cases))


def shown(monkeypatch: pytest.MonkeyPatch, result: ModelResult) -> list[tuple[str, str]]:
    def told(_: Any, case_id: str, kind: str, __: ReportConfig) -> Any:
        return case_id, kind

    monkeypatch.setattr(pictures, "_viewer_case", told)
    gallery = pictures.Gallery(None, None, [result], {})  # type: ignore[arg-type]
    return list(pictures.viewer_cases(gallery, ReportConfig(viewer_cases=9), ()))  # type: ignore[arg-type]


def test_a_case_without_dice_is_not_called_the_best(monkeypatch):
    result = result_of({"a": None, "b": 2, "c": None, "d": 8, "e": 5, "f": None})
    assert shown(monkeypatch, result) == [
        ("b", "low Dice"),
        ("e", "median Dice"),
        ("d", "high Dice"),
        ("a", "no Dice"),
        ("c", "no Dice"),
        ("f", "no Dice"),
    ]


def test_the_median_is_that_of_the_cases_with_a_dice(monkeypatch, tmp_path):
    drawn = []

    def draw(path: Path, shows: Any, _: Any) -> None:
        drawn.append((path.name, shows))
        path.write_bytes(b"png")

    monkeypatch.setattr(pictures, "write_case_overlay", draw)
    monkeypatch.setattr(pictures, "write_montage", draw)
    monkeypatch.setattr(pictures.Gallery, "view", lambda _, case_id: case_id)
    scans: Any = SimpleNamespace(manifest=SimpleNamespace(class_names=("background", "disc")))
    result = result_of({"a": None, "b": 2, "c": None, "d": 8, "e": 5, "f": None})
    (tmp_path / "overlays").mkdir()
    config = EvaluateConfig(worst_cases=1, median_cases=1)
    pictures.draw_overlays(pictures.Gallery(scans, None, [result], {}), config, tmp_path)  # type: ignore[arg-type]
    assert drawn == [("worst_01_b.png", "b"), ("median.png", ["e"])]


def test_cases_of_which_none_has_a_dice_are_shown_all_the_same(monkeypatch):
    assert shown(monkeypatch, result_of({"a": None})) == [("a", "no Dice")]
