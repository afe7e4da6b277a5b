"""The pages name files that are there, and verbs, options and keys that exist."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from sssflow.cli.main import app
from sssflow.experiment import ExperimentConfig
from sssflow.export.config import Sam2ExportConfig
from sssflow.ingest.phantoms.config import PhantomConfig
from sssflow.sam.config import PretrainConfig
from sssflow.serving.config import RepositoryConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/results/*.md", "charts/*/README.md")
    for page in ROOT.glob(pattern)
)


def names(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `sssflow` call in a code block, indented or fenced."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        call = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
        if (fenced or line.startswith("    ")) and call.startswith("sssflow "):
            # An ellipsis or a comment ends what a reader is to type.
            yield shlex.split(call, comments=True)[1:]


def test_every_command_of_the_pages_has_its_verb_its_options_and_its_keys() -> None:
    wrong, seen = [], 0
    for page in PAGES:
        for arguments in commands(page):
            seen += 1
            wrong += [f"{page.name}: {arguments}: {p}" for p in problems(arguments)]
    assert wrong == []
    assert seen > 40


SETTINGS: dict[tuple[str, ...], type[BaseModel]] = {
    ("data", "phantoms"): PhantomConfig,
    ("serve", "repository"): RepositoryConfig,
    ("sam2", "pretrain"): PretrainConfig,
    ("export", "sam2"): Sam2ExportConfig,
}


def problems(arguments: list[str]) -> Iterator[str]:
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while (verbs := getattr(command, "commands", None)) is not None:
        if "student" in verbs and rest and rest[0] not in (*verbs, "--help"):
            rest.insert(0, "student")  # what `sssflow export` means alone
        if not rest or rest[0] not in verbs:
            if not command.invoke_without_command:
                yield f"no verb {rest[:1]}"
            break
        command = verbs[rest.pop(0)]
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    options |= {"--help", "--version"}
    for word, value in itertools.pairwise([*rest, ""]):
        name = word.split("=")[0]
        if name.startswith("-") and name not in options:
            yield f"no option {name}"
        if name in {"--set", "-s"}:
            key = (value if name == word else word.split("=", 1)[1]).split("=")[0]
            settings = SETTINGS.get((*arguments[:1], *arguments[1:2]), ExperimentConfig)
            if not has_key(settings, key):
                yield f"no key {key}"


def has_key(model: object, dotted: str) -> bool:
    for name in dotted.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return False
        if name not in model.model_fields:
            return False
        model = model.model_fields[name].annotation
    return True


@pytest.mark.parametrize(
    "arguments", [["no-such-verb"], ["train", "--no-such"], ["train", "--set", "train.stops=1"]]
)
def test_a_wrong_command_is_noticed(arguments: list[str]) -> None:
    assert list(problems(arguments)) != []
