"""The names of the methods, the registry and the sections of the configuration are one list."""

from __future__ import annotations

from typing import get_args

from sssflow.training.config import TrainConfig
from sssflow.training.method_config import MethodName
from sssflow.training.methods.registry import METHODS

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
