"""What a verb says of its inputs and its output before it runs: `--dry-run` refuses as the run."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from cli_files import SHA, Files, write_files

from sssflow.cli import known
from sssflow.cli.main import run
from sssflow.contracts.masks import MaskSet
from sssflow.contracts.prompts import PromptSet
from sssflow.storage.contracts import load_contract, save_contract


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    Path("scans", "a.nii.gz").touch()
    return write_files(Path())


INFER = ["infer", "dataset/manifest.json", "prompts/prompts.json", "OUT"]
GOOD = (
    ["train", "dataset/manifest.json", "OUT", "--masks", "masks/masks.json"],
    ["train", "dataset/manifest.json", "OUT", "-m", "supervised", "--start", "w3/model/model.json"],
    ["train", "dataset/manifest.json", "OUT", "-s", "train.sss.mask_weight=0"],
    ["train", "dataset/manifest.json", "OUT", "-m", "semisam", "--sam2", "adapted/sam2.json"],
    ["prompts", "dataset/manifest.json", "w3/model/model.json", "OUT", "--case", "p1"],
    ["prompts", "dataset/manifest.json", "w3/model", "OUT"],
    INFER,
    ["evaluate", "dataset/manifest.json", "OUT", "--model", "a=w3/model/model.json"],
    ["export", "dataset/manifest.json", "w3/model/model.json", "OUT"],
    ["predict", "w3/model/model.json", "scans", "OUT", "--beside", "w3/model/model.json"],
    ["export", "sam2", "OUT", "--dataset", "dataset/manifest.json"],
    ["sam2", "adapt", "dataset/manifest.json", "OUT"],
    ["sam2", "pretrain", "OUT", "--dataset", "dataset/manifest.json"],
)


@pytest.mark.parametrize("arguments", GOOD, ids=lambda words: " ".join(words[:2]))
def test_a_dry_run_says_what_it_looked_at(
    arguments: list[str], files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "the inputs are of the right kind, the rest is checked when it runs" in told
    assert not Path("OUT").exists()


@pytest.mark.parametrize("arguments", [a for a in GOOD if "dataset/manifest.json" in a])
def test_another_file_instead_of_the_manifest_is_refused(
    arguments: list[str], files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, words in (
        ("masks/masks.json", "expected: sssflow.dataset version 1"),
        ("dataset", "next: Name dataset/manifest.json."),
        ("w3", "expected: the path of a manifest.json"),
    ):
        filled = [wrong if word == "dataset/manifest.json" else word for word in arguments]
        for dry in ([], ["--dry-run"]):
            assert run([*filled, *dry]) == 65
            assert words in capsys.readouterr().err
    assert not Path("OUT").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["prompts", "dataset/manifest.json", "w3", "OUT"],
        ["evaluate", "dataset/manifest.json", "OUT", "--model", "a=w3"],
        ["export", "dataset/manifest.json", "w3", "OUT"],
        ["predict", "w3", "dataset", "OUT"],
        ["train", "dataset/manifest.json", "OUT", "-m", "supervised", "--start", "w3"],
    ],
    ids=lambda words: words[0],
)
def test_a_run_folder_instead_of_its_model_names_the_model(
    arguments: list[str], files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--dry-run"]) == 65
    assert "next: Name w3/model/model.json." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "dataset/manifest.json", "OUT"], 64, "none were given"),
        (["export", "sam2", "OUT", "--size", "tiny"], 64, "where: --weights\n"),
        (
            [*GOOD[6], "-s", "sam.weights=gone.pt"],
            65,
            "Correct sam.weights.",
        ),
        (
            ["prompts", "dataset/manifest.json", "w3/model/model.json", "OUT", "--case", "p9"],
            65,
            "expected: p1\n  found: p9\n  next: ",
        ),
        (
            [*INFER, "--set", "sam.backend=onnx"],
            64,
            "The backend onnx needs exported graphs.\n  where: sam.onnx.bundle",
        ),
        (
            [*INFER, "--set", "sam.backend=triton", "--set", "sam.onnx.bundle=nowhere"],
            65,
            "nowhere/bundle.json",
        ),
        (["train", "a", "b", "--section", "finetune", "--print-config"], 64, "baseline | train"),
        (["train", "a", "b", "--section", "finetune", "-m", "sss"], 64, "baseline | train"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses_at_once(
    arguments: list[str],
    code: int,
    words: str,
    files: Files,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for dry in ([], ["--dry-run"]):
        assert run([*arguments, *dry]) == code
        assert words in capsys.readouterr().err
    assert not Path("OUT").exists()


def test_prompts_and_masks_of_another_dataset_are_refused(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, path in ((PromptSet, files.prompts), (MaskSet, files.masks)):
        other = load_contract(kind, path).model_copy(update={"dataset_digest": SHA})
        save_contract(other, path)
    for words in (GOOD[0], ["infer", "dataset/manifest.json", "prompts/prompts.json", "OUT"]):
        assert run([*words, "--dry-run"]) == 65
        assert "belong to another dataset" in capsys.readouterr().err


def test_a_dry_run_without_a_look_into_files_says_so(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "check", "dataset", "--dry-run"]) == 0
    assert "the paths exist, their contents are checked when it runs" in capsys.readouterr().out


def test_an_output_below_a_file_or_too_long_is_exit_69_with_a_remedy(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").write_text("")
    for out in ("taken/below", "x" * 300):
        for dry in ([], ["--dry-run"]):
            assert run([*GOOD[0][:2], out, *GOOD[0][3:], *dry]) == 69
            text = capsys.readouterr().err
            assert "The output folder cannot be made." in text
            assert "next: Choose another output folder" in text


@pytest.mark.parametrize(
    ("named", "code"), [("out", 69), ("out/part", 69), (".", 69), ("scans/a.nii", 70)]
)
def test_a_system_that_refuses_to_make_the_output_is_exit_69(
    named: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As below /proc, which no look beforehand shows."""
    from sssflow.ingest.phantoms import stage

    def fail(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / named))

    monkeypatch.setattr(stage, "run", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(["data", "phantoms", str(tmp_path / "out")]) == code
    assert ("The output folder cannot be made." in capsys.readouterr().err) == (code == 69)


def test_what_lies_beside_is_known_by_what_it_holds(files: Files) -> None:
    out = Path("next")
    assert known.adapted_to(files.manifest, out) == files.sam2
    assert known.prompted_by(files.prompts, out) == files.model
    assert known.run_of(files.model) is None
    Path("w3/run.json").write_text("{}")
    assert known.run_of(files.model) == Path("w3/run.json")
    Path("aaa").mkdir()
    Path("aaa/sam2.json").write_text("broken")
    assert known.adapted_to(files.manifest, out) == files.sam2
    assert known.adapted_to(files.prompts, out) is None
    assert known.prompted_by(files.manifest, out) is None
    files.sam2.unlink()
    assert known.adapted_to(files.manifest, out) is None


def test_predict_refuses_to_replace_masks_before_it_starts(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = Path("labelsTs", "a.nii.gz")
    truth.parent.mkdir()
    truth.write_bytes(b"by hand")
    for dry in ([], ["--dry-run"]):
        assert run(["predict", "w3/model/model.json", "scans", "labelsTs", *dry]) == 64
        told = capsys.readouterr().err
        assert f"where: {truth}" in told
        assert "Name another folder for the masks" in told
    assert truth.read_bytes() == b"by hand"
    assert list(truth.parent.iterdir()) == [truth]


def test_predict_says_in_a_dry_run_where_the_scans_lie(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "w3/model/model.json", ".", "OUT", "--dry-run"]) == 65
    assert "NIfTI files in scans/" in capsys.readouterr().err
