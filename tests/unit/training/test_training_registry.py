"""The names of the methods, the registry and the sections of the configuration are one list."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args

from sssflow.training.config import TrainConfig
from sssflow.training.method_config import MethodName
from sssflow.training.methods.registry import METHODS

MOST_LINES = 150
WITHOUT_SETTINGS = {"supervised"}


def test_every_name_has_a_method_and_every_method_its_name():
    assert set(get_args(MethodName)) == set(METHODS)
    assert all(method.name == name for name, method in METHODS.items())


def test_every_section_belongs_to_a_method_and_every_method_with_settings_has_one():
    sections = {
        name: type(field.get_default(call_default_factory=True)).__name__
        for name, field in TrainConfig.model_fields.items()
        if type(field.get_default(call_default_factory=True)).__module__.endswith("_config")
    }
    assert set(sections) == set(METHODS) - WITHOUT_SETTINGS
    assert len(set(sections.values())) == len(sections)


def test_every_method_is_read_in_one_file_of_150_lines():
    files = {Path(inspect.getfile(method)) for method in METHODS.values()}
    assert len(files) == len(METHODS)
    assert {file.parent.name for file in files} == {"methods"}
    long = {f.name: n for f in files if (n := len(f.read_text("utf-8").splitlines())) > MOST_LINES}
    assert long == {}
