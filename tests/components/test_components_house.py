"""What keeps every component thin, documented and independent of the network."""

from __future__ import annotations

import ast
import sys
from datetime import date
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

pytest.importorskip("kfp")

from components.readme import component_names, load_component, read_metadata, readme

from components import BASE_IMAGE

FOLDER = Path(__file__).resolve().parents[2] / "components"
NAMES = component_names(FOLDER)
MOST_LINES = 60


class _Dependency(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    version: str = Field(pattern=r"^(==|>=)\d+(\.\d+)*$")


class _Dependencies(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kubeflow: list[_Dependency] = Field(min_length=1)
    external_services: list[str]


class Metadata(BaseModel):
    """Schema of metadata.yaml."""

    model_config = ConfigDict(extra="forbid")

    name: str
    stability: Literal["experimental", "alpha", "beta", "stable"]
    dependencies: _Dependencies
    tags: list[str] = Field(min_length=1)
    lastVerified: date  # noqa: N815 - the name that component repositories use
    calls: str = Field(pattern=r"^sssflow(\.[a-z0-9_]+)+$")


def tree(name: str) -> ast.Module:
    return ast.parse((FOLDER / name / "component.py").read_text(encoding="utf-8"))


def top_level_imports(module: ast.Module) -> list[str]:
    found: list[str] = []
    for node in module.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_there_are_eight_components() -> None:
    assert NAMES == [
        "adapt_sam2",
        "evaluate",
        "export_onnx",
        "generate_prompts",
        "ingest",
        "plan_shards",
        "sam2_inference",
        "train",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_component_s_page_is_what_its_signature_gives(name: str) -> None:
    written = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert written == readme(name, read_metadata(FOLDER / name)), "run `make pipelines`"


@pytest.mark.parametrize("name", NAMES)
def test_a_component_s_metadata_holds_to_the_schema(name: str) -> None:
    found = Metadata.model_validate(read_metadata(FOLDER / name))
    assert found.name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_component_calls_what_its_metadata_says(name: str) -> None:
    module, function = read_metadata(FOLDER / name)["calls"].rsplit(".", 1)
    source = (FOLDER / name / "component.py").read_text(encoding="utf-8")
    package, last = module.rsplit(".", 1)
    assert f"from {package} import {last}" in source or f"from {module} import {function}" in source


@pytest.mark.parametrize("name", NAMES)
def test_the_top_of_a_component_imports_the_standard_library_and_kfp_only(name: str) -> None:
    allowed = {"kfp.dsl", "components.BASE_IMAGE"}
    strangers = [
        imported
        for imported in top_level_imports(tree(name))
        if imported not in allowed and imported.split(".")[0] not in sys.stdlib_module_names
    ]
    assert strangers == []


def test_the_import_guard_sees_a_stranger() -> None:
    module = ast.parse("import numpy\nfrom sssflow.training import stage\n")
    assert top_level_imports(module) == ["numpy", "sssflow.training.stage"]


@pytest.mark.parametrize("name", NAMES)
def test_a_component_is_thin_and_holds_one_function(name: str) -> None:
    (function,) = [node for node in tree(name).body if isinstance(node, ast.FunctionDef)]
    assert function.end_lineno is not None
    body = function.end_lineno - function.body[1].lineno + 1  # without the docstring
    assert body <= MOST_LINES
    assert not [node for node in ast.walk(function) if isinstance(node, ast.For | ast.While)]


@pytest.mark.parametrize("name", NAMES)
def test_a_component_installs_nothing_and_names_the_placeholder_image(name: str) -> None:
    container = load_component(name).component_spec.implementation.container
    assert container.image == BASE_IMAGE
    assert "pip" not in " ".join(container.command[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_every_component_gives_its_result_as_the_return_value(name: str) -> None:
    # Only the return value can be looped over, and a parameter is what the cache sees.
    assert "Output" in load_component(name).component_spec.outputs
