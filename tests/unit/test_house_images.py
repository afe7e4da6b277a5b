"""The container images: locked, small in rights, fit for a read-only root, and labelled."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("pipeline", "triton")
LABELS = ("title", "description", "licenses", "version", "revision")
SBOM = "/usr/share/sssflow/sbom.cdx.json"
BUILDERS = re.compile(r"\b(apt-get|apk|gcc|g\+\+|clang|make|build-essential|cmake|ninja|nvcc)\b")


@dataclass(frozen=True)
class Stage:
    """One FROM of a Dockerfile: its base, its name, and (instruction, text) in order."""

    base: str
    name: str
    steps: tuple[tuple[str, str], ...]

    def texts(self, instruction: str) -> list[str]:
        return [text for name, text in self.steps if name == instruction]


def parse(text: str) -> tuple[dict[str, str], list[Stage]]:
    """Arguments before the first FROM with their defaults, and the stages."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    arguments: dict[str, str] = {}
    stages: list[tuple[str, str, list[tuple[str, str]]]] = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        rest = re.sub(r"\s+", " ", rest.strip())
        if name == "FROM":
            base, _, alias = rest.partition(" AS ")
            stages.append((base, alias, []))
        elif stages:
            stages[-1][2].append((name, rest))
        else:
            assert name == "ARG", line
            key, _, default = rest.partition("=")
            arguments[key] = default
    return arguments, [Stage(base, alias, tuple(steps)) for base, alias, steps in stages]


def lineage(stages: list[Stage]) -> list[Stage]:
    """The last stage and the stages it is made from, oldest first."""
    named = {stage.name: stage for stage in stages if stage.name}
    found = [stages[-1]]
    while found[0].base in named:
        found.insert(0, named[found[0].base])
    return found


def faults(text: str) -> set[str]:
    """What an image of this Dockerfile would fall short of, by the names of the rules."""
    arguments, stages = parse(text)
    final = lineage(stages)
    steps = [step for stage in final for step in stage.steps]
    rules: dict[str, Callable[[], bool]] = {
        "base": lambda: all(
            stage.base in {s.name for s in stages}
            or re.fullmatch(r"[a-z0-9./-]+:(?!latest)[\w.-]+", arguments.get(stage.base[2:-1], ""))
            for stage in stages
        ),
        "user": lambda: bool(
            re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", [t for n, t in steps if n == "USER"][-1])
        ),
        "labels": lambda: all(
            f"org.opencontainers.image.{label}=" in " ".join(final[-1].texts("LABEL"))
            for label in LABELS
        ),
        "sbom": lambda: f"COPY --from=sbom /sbom.cdx.json {SBOM}" in map(" ".join, steps),
        "hashes": lambda: all(_locked(run) for stage in stages for run in stage.texts("RUN")),
        "no builder": lambda: not any(BUILDERS.search(t) for n, t in steps if n == "RUN"),
        "no download": lambda: (
            not re.search(r"^ADD|\b(curl|wget|git clone)\b|^#\s*syntax=", text, re.MULTILINE)
        ),
        "no secret": lambda: not re.search(r"(?i)password|token|secret|_key\b", text),
    }
    return {name for name, holds in rules.items() if not holds()}


def _locked(command: str) -> bool:
    """Whether everything that a RUN installs is checked by hash or comes from an earlier stage."""
    installs = re.findall(r"pip(?: --python \S+)? (?:install|sync|wheel)\b[^&|]*", command)
    return all("--require-hashes" in part or "--no-index" in part for part in installs)


def dockerfile(name: str) -> str:
    return (ROOT / "images" / name / "Dockerfile").read_text("utf-8")


def test_there_is_no_image_that_these_tests_do_not_know() -> None:
    assert {path.parent.name for path in (ROOT / "images").glob("*/Dockerfile")} == set(IMAGES)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_keeps_every_rule(name: str) -> None:
    assert faults(dockerfile(name)) == set()


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("python:3.12-slim", "python:latest", "base"),
        ("USER 10001:10001", "USER 0:0", "user"),
        ("USER 10001:10001", "USER sssflow", "user"),
        ("image.revision=", "image.rev=", "labels"),
        ("COPY --from=sbom", "COPY --from=wheel", "sbom"),
        ("uv pip sync --quiet --require-hashes", "uv pip sync --quiet", "hashes"),
        ("rm -rf /wheels ", "apt-get install -y gcc && rm -rf /wheels ", "no builder"),
        ("COPY src /source/src", "ADD https://example.org/src /source/src", "no download"),
        ("ENV PATH=", "ENV API_TOKEN=1 PATH=", "no secret"),
    ],
)
def test_each_rule_is_broken_by_the_change_that_it_is_about(
    before: str, after: str, rule: str
) -> None:
    text = dockerfile("pipeline")
    assert before in text
    assert faults(text.replace(before, after)) == {rule}


def test_tasks_have_a_user_name_whichever_user_the_cluster_gives_them() -> None:
    _, stages = parse(dockerfile("pipeline"))
    environment = dict(item.split("=", 1) for item in stages[-1].texts("ENV")[0].split())
    # What `import monai` and torch's compiler call; no entry of /etc/passwd stands for the user.
    ask = (
        "import getpass, pwd\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "print(getpass.getuser())"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "sssflow\n", done.stderr


def test_tasks_write_below_one_mount_and_install_nothing() -> None:
    _, stages = parse(dockerfile("pipeline"))
    environment = dict(item.split("=", 1) for item in stages[-1].texts("ENV")[0].split())
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        assert environment[name].split("/")[:2] == ["", "tmp"], name
    lock = (ROOT / "requirements" / "runtime.txt").read_text("utf-8")
    assert {"kfp", "boto3", "tritonclient"} <= set(re.findall(r"^([a-z0-9-]+)", lock, re.MULTILINE))
    assert "/usr/local/bin/pip*" in stages[-1].texts("RUN")[0]


@pytest.mark.parametrize("name", IMAGES)
def test_the_build_sees_what_it_copies_and_nothing_else(name: str) -> None:
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in rules
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [
        source
        for stage in parse(dockerfile(name))[1]
        for copy in stage.texts("COPY")
        if not copy.startswith("--from=")
        for source in copy.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, f"{rule}*") for rule in allowed), source


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_machine_without_a_container_engine_is_told_what_to_do(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "DOCKER": "no-such-engine", "HOME": str(tmp_path)}
    command = ["bash", str(ROOT / "tools" / "images.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 69
    assert "DOCKER=podman" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_folder_of_images_does_not_stand_in_for_the_target() -> None:
    command = ["make", "-C", str(ROOT), "--no-print-directory", "--dry-run", "images"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "tools/images.sh"
