"""The reference pages say what the models and the command line say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_what_make_docs_would_write() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "nothing to change\n", f"run `make docs`: {done.stdout}{done.stderr}"
    assert done.returncode == 0


def test_the_reference_describes_every_key_and_every_verb() -> None:
    folder = ROOT / "docs" / "reference"
    keys = (folder / "configuration.md").read_text("utf-8")
    rows = [line for line in keys.splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if row.rstrip().endswith("|  |")] == []
    verbs = (folder / "command-line.md").read_text("utf-8")
    assert verbs.count("\n## `sssflow ") == 33
