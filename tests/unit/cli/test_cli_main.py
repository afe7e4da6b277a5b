"""The command line: exit codes, messages, options that every verb has."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from cli_files import write_files

import sssflow
from sssflow.cli import main, session
from sssflow.cli.main import run
from sssflow.configuration import load_config
from sssflow.errors import InterruptedRun, UnavailableError
from sssflow.experiment import ExperimentConfig

VERBS = (
    ("data", "check"),
    ("data", "pack"),
    ("data", "phantoms"),
    ("train",),
    ("prompts",),
    ("infer",),
    ("evaluate",),
    ("export", "student"),
    ("export", "sam2"),
    ("sam2", "pretrain"),
    ("pipeline", "run"),
    ("demo",),
)
CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SMALL_PHANTOMS = ("--set", "patients=2", "--set", "hearts.slices=[3,3]")


def test_version_and_help_are_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"sssflow {sssflow.__version__}\n"
    assert run(["--help"]) == 0
    assert run([]) == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_and_the_common_options(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*verb, "--help"]) == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    for option in ("--set", "--print-config", "--dry-run"):
        assert option in text


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["train", "--nonsense"], ["data"], ["demo", "--seed", "x"], ["demo", "a", "b"]],
)
def test_a_wrong_command_line_is_exit_64_without_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 64
    captured = capsys.readouterr()
    assert re.match(r"usage error: \S", captured.err)
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("verb", [v for v in VERBS if v != ("demo",)], ids=" ".join)
def test_a_missing_argument_is_exit_64(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(list(verb)) == 64
    assert "is missing" in capsys.readouterr().err


def test_an_unknown_key_is_exit_64_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["train", "a", "b", "--set", "train.step=1"]) == 64
    assert "did you mean 'steps'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb",
    [v for v in VERBS if v not in {("data", "phantoms"), ("sam2", "pretrain"), ("export", "sam2")}],
)
def test_printed_settings_are_read_back_equal(
    verb: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*verb, "--print-config", "--set", "train.steps=7"]) == 0
    path = tmp_path / "a.yaml"
    path.write_text(capsys.readouterr().out)
    first = load_config(ExperimentConfig, path)
    assert first.train.steps == 7
    if verb != ("demo",):  # whose settings come from the package
        assert run([*verb, "--print-config", "-c", str(path)]) == 0
        assert capsys.readouterr().out == path.read_text()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["train", "MANIFEST", "OUT"], "dataset"),
        (["train", "HERE", "OUT", "-m", "sss", "--masks", "MASKS"], "masks 1"),
        (["prompts", "HERE", "MODEL", "OUT"], "model"),
        (["infer", "HERE", "PROMPTS", "OUT"], "prompts"),
        (["evaluate", "HERE", "OUT", "--model", "a=MODEL"], "a"),
        (["export", "HERE", "HERE", "OUT", "--run", "RUN"], "run"),
        (["export", "student", "HERE", "HERE", "OUT", "--run", "RUN"], "run"),
        (["export", "sam2", "OUT", "--weights", "WEIGHTS"], "weights"),
    ],
)
def test_an_input_that_is_not_there_is_exit_65_and_named(
    arguments: list[str],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("HERE").write_text("{}")
    assert run(arguments) == 65
    assert f"data error: {what} does not exist." in capsys.readouterr().err
    assert run([*arguments, "--dry-run"]) == 65
    assert not Path("OUT").exists()


@pytest.mark.parametrize(("option", "method"), [("--masks", "sss"), ("--sam2", "semisam")])
def test_an_input_that_the_method_does_not_read_is_refused(
    option: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_files(tmp_path)
    given = str({"--masks": files.masks, "--sam2": files.sam2}[option])
    words = ["train", str(files.manifest), str(tmp_path / "out"), option, given, "--dry-run"]
    assert run([*words, "--method", "supervised"]) == 64
    assert f"Add --method {method}" in capsys.readouterr().err
    assert run([*words, "--method", method]) == 0


def test_the_next_command_packs_what_was_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = str(tmp_path / "scans")
    assert run(["data", "phantoms", scans, "-s", "patients=3", "-s", "hearts.slices=[3,3]"]) == 0
    config = tmp_path / "my file.yaml"
    config.write_text("ingest: {name: mine}")
    words = ["--config", str(config), "--set", "ingest.split.labelled=1"]
    assert run(["data", "check", scans, *words]) == 0
    told = capsys.readouterr().out
    assert f"next: sssflow data pack {scans} OUT {shlex.join(words)}" in told


@pytest.mark.parametrize("is_empty", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "check", "SCANS"],
        ["data", "pack", "SCANS", "OUT"],
        ["pipeline", "run", "OUT", "--source", "SCANS"],
    ],
    ids=lambda a: " ".join(a[:2]),
)
def test_no_scans_at_that_place_shows_the_expected_layout(
    arguments: list[str],
    is_empty: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if is_empty:
        Path("SCANS").mkdir()
    assert run([*arguments, "--config", str(CONFIGS / "acdc-lite.yaml")]) == 65
    text = capsys.readouterr().err
    assert "train_slices.list" in text
    assert "[bhsd]" not in text
    assert ("an empty folder" in text) == is_empty
    assert not Path("OUT").exists()
    assert run(arguments) == 65
    assert "[bhsd]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "check", "SCANS"],
        ["pipeline", "run", "OUT", "--source", "SCANS"],
        ["data", "push", "SCANS", "s3://bucket/scans"],
        ["predict", "SCANS", ".", "OUT"],
    ],
    ids=lambda a: " ".join(a[:2]),
)
def test_an_input_that_may_not_be_looked_at_is_told_in_words(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A closed folder, which only a user without root's rights can try, by a name too long."""
    monkeypatch.chdir(tmp_path)
    assert run(["x" * 300 if word == "SCANS" else word for word in arguments]) == 65
    told = capsys.readouterr().err
    assert "File name too long" in told
    assert "next: Check the path, and that you may read it." in told


def test_a_file_in_the_place_of_a_folder_of_scans_is_called_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans.zip").write_text("")
    assert run(["data", "check", str(tmp_path / "scans.zip")]) == 65
    assert "found: a file\n" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_exit_64(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    assert run(["data", "phantoms", str(tmp_path / "out")]) == 64
    assert "next: Name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("store", ["gs://bucket/x", "s3://[bucket]/x", "file://results", "FILE"])
def test_a_store_that_can_hold_nothing_is_exit_64(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "x").write_text("")
    given = str(tmp_path / "scans" / "x") if store == "FILE" else store
    words = ["pipeline", "run", str(tmp_path / "out"), "--source", str(tmp_path / "scans")]
    assert run([*words, "--store", given, "--dry-run"]) == 64
    assert f"where: {given}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("texts", "then"),
    [
        (["w2"], "Write --model NAME=w2;"),
        (["=x"], "Write --model NAME=x;"),
        (["a="], "Write --model a=PATH;"),
        (["a=x", "a=y"], "Give each path its own name."),
    ],
    ids=["no-sign", "no-name", "no-path", "twice"],
)
def test_names_of_models_must_be_clear(
    texts: list[str], then: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text("{}")
    options = [word for text in texts for word in ("--model", text)]
    assert run(["evaluate", str(manifest), str(tmp_path / "out"), *options]) == 64
    assert f"next: {then}" in capsys.readouterr().err
    assert run(["evaluate", str(manifest), str(tmp_path / "out")]) == 64
    assert "next: Name one;" in capsys.readouterr().err


def test_a_dry_run_says_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["demo", str(out), "--dry-run"]) == 0
    assert run(["data", "phantoms", str(out), "--dry-run", *SMALL_PHANTOMS]) == 0
    text = capsys.readouterr().out
    assert "draws 2 patients (hearts), seed 0" in text
    assert text.count("nothing was written") == 2
    assert list(tmp_path.iterdir()) == []


def test_phantoms_are_drawn_checked_and_packed_by_three_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, dataset = tmp_path / "scans", tmp_path / "data set"
    assert run(["data", "phantoms", str(scans), *SMALL_PHANTOMS]) == 0
    one = ["--set", "ingest.split.labelled=1"]
    assert run(["data", "check", str(scans), *one]) == 0
    assert run(["data", "pack", str(scans), str(dataset), *one]) == 0
    captured = capsys.readouterr()
    assert "labelled: 1" in captured.out
    assert f"next: sssflow train '{dataset}/manifest.json' RUN" in captured.out
    assert len(json.loads((dataset / "manifest.json").read_text())["cases"]) == 4


def test_problems_of_scans_are_all_told_and_exit_65(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    assert run(["data", "phantoms", str(scans), *SMALL_PHANTOMS]) == 0
    for name in ("patient001/patient001_frame01.nii.gz", "patient002/patient002_frame01.nii.gz"):
        (scans / name).write_bytes(b"broken")
    split = ["--set", "ingest.split.labelled=1"]
    assert run(["data", "check", str(scans), *split]) == 65
    text = capsys.readouterr().err
    assert "[1] " in text
    assert "[2] " in text
    assert "patient001_frame01" in text
    assert "patient002_frame01" in text
    assert run(["data", "pack", str(scans), str(tmp_path / "out"), *split]) == 65
    assert not (tmp_path / "out" / "manifest.json").exists()


class TestFailures:
    """What each kind of failure inside a verb becomes."""

    @staticmethod
    def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        from sssflow.ingest.phantoms import stage

        def fail(config: object, out: Path) -> None:
            out.mkdir(parents=True, exist_ok=True)
            raise error

        monkeypatch.setattr(stage, "run", fail)

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (UnavailableError("The disk is full."), 69),
            (InterruptedRun("Stopped at step 3."), 75),
            (KeyboardInterrupt(), 130),
        ],
    )
    def test_an_expected_failure_has_its_code_and_no_traceback(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        error: BaseException,
        code: int,
    ) -> None:
        self.fail_with(monkeypatch, error)
        assert run(["data", "phantoms", str(tmp_path / "out")]) == code
        text = capsys.readouterr().err
        assert "Traceback" not in text
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_bug_is_exit_70_with_the_traceback_in_a_named_file(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.fail_with(monkeypatch, ZeroDivisionError("a secret of the inside"))
        assert run(["data", "phantoms", str(tmp_path / "out")]) == 70
        text = capsys.readouterr().err
        assert text.startswith("internal error: ZeroDivisionError: a secret of the inside\n")
        assert "Traceback (most recent" not in text
        (kept,) = (tmp_path / "out").iterdir()
        assert str(kept) in text.replace("\n", "")
        assert "ZeroDivisionError" in kept.read_text()

    def test_a_bug_without_an_output_folder_still_keeps_its_traceback(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(session, "load_config", fail)
        assert main.run(["train", "--print-config"]) == 70
        assert "internal error: RuntimeError" in capsys.readouterr().err
        assert len(list(tmp_path.glob("sssflow-traceback-*.txt"))) == 1


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("utf-8", b"M\xfcller \xc3\x97"), ("ascii", rb"M\udcfcller \xd7")],
)
def test_any_name_of_a_file_can_be_printed(encoding: str, said: bytes) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    main._print_any_name(stream)
    stream.write(os.fsdecode(b"M\xfcller \xc3\x97"))
    stream.flush()
    assert raw.getvalue() == said


def test_an_output_whose_name_is_not_utf_8_is_exit_65(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / os.fsdecode(b"M\xfcller")
    assert run(["data", "phantoms", str(out)]) == 65
    assert "not UTF-8" in capsys.readouterr().err
    assert not out.exists()
