"""The commands that are proposed lead from scans to a bundle, with everything that is known."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sssflow.cli.main import run

FLOW = """
ingest: {layout: acdc, split: {labelled: 1, validation: 1, test: 1}}
warmup: &tiny
  method: supervised
  network: {name: unet, base_channels: 4}
  preprocessing: {size_hw: [32, 32], intensity: {kind: percentile}}
  steps: 2
  batch_labelled: 2
  batch_unlabelled: 2
  device: cpu
train: {<<: *tiny, method: sss}
adapt: {steps: 0}
sam: {input_size: 64, device: cpu}
prompts: {device: cpu, pcsw: {}}
evaluate: {device: cpu}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("my flow.yaml").write_text(FLOW)
    return tmp_path


def proposed(told: str) -> list[list[str]]:
    """The command lines after `next:`, in words."""
    lines = told.partition("next: ")[2].splitlines()
    return [shlex.split(line) for line in lines]


@pytest.mark.slow
def test_the_proposed_commands_lead_from_scans_to_a_bundle(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--config", "my flow.yaml", "--set", "train.seed=7"]
    small = ["-s", "patients=4", "-s", "hearts.slices=[3,3]"]
    assert run(["data", "phantoms", "scans", *small]) == 0
    capsys.readouterr()

    def follow(words: list[str], **names: str) -> list[list[str]]:
        """Run a proposed line with its capital names replaced; what it proposes."""
        assert words[-4:] == given
        filled = [names.get(word, word) for word in words]
        assert not [word for word in filled if word.isupper()]
        assert run(filled[1:]) == 0
        return proposed(capsys.readouterr().out)

    (pack,) = follow(["sssflow", "data", "check", "scans", *given])
    (warmup,) = follow(pack, OUT="dataset")
    prompts, measure, _ = follow(warmup, RUN="warm up")
    assert measure[1] == "evaluate"
    (infer,) = follow(prompts, PROMPTS="prompts")
    assert "--sam2" not in infer
    (train,) = follow(infer, MASKS="masks")
    assert train[train.index("--start") + 1] == "warm up/model/model.json"
    measure, _ = follow(train, RUN="final")
    assert measure[2:-4] == [
        "dataset/manifest.json",
        "EVALUATION",
        *("--model", "warm-up=warm up/model/model.json", "--model", "final=final/model/model.json"),
        *("--run", "warm-up=warm up/run.json", "--run", "final=final/run.json"),
    ]
    (export,) = follow(measure, EVALUATION="measured")
    assert export[-8:-4] == ["--run", "final/run.json", "--evaluation", "measured/evaluation.json"]
    (predict,) = follow(export, BUNDLE="bundle")
    (scan, *_) = sorted(Path("scans").rglob("*_frame*.nii.gz"))
    assert follow(predict, NEW_SCANS=str(scan), MASKS="new") == []
    assert Path("new", scan.name).is_file()
    assert Path("bundle/bundle.json").is_file()
