"""Names that are no UTF-8, as old systems left them in archives of scans."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sssflow.errors import DataError
from sssflow.storage.names import require_text_name
from sssflow.storage.places import FilePlace, push_tree

LATIN = os.fsdecode("Müller.txt".encode("latin-1"))


def test_a_name_that_is_not_utf_8_is_told_with_its_bytes() -> None:
    require_text_name(Path("Müller.txt"))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        require_text_name(Path("scans") / LATIN)
    assert rb"found: b'scans/M\xfcller.txt'" in caught.value.describe().encode()


def test_a_folder_with_such_a_name_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    folder = tmp_path / LATIN / "folder"  # what lies above does not travel
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    assert len(push_tree(folder, FilePlace(tmp_path / "there")).files) == 1
    (folder / LATIN).write_text("b")
    with pytest.raises(DataError, match="not UTF-8"):
        push_tree(folder, FilePlace(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()
