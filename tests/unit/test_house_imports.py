"""The rooms import each other only in the direction of the data (DESIGN, section 3)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sssflow.networks.registry import PROVIDED

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "sssflow"
LEAST_FILES = 60

SHARED = {"sssflow", "errors", "configuration"}
"""Root modules that every room may import; `sssflow` itself holds the version only."""

ROOMS = {
    "contracts": set(),
    "storage": {"contracts"},
    "volume": {"contracts", "storage"},
    "ingest": {"volume", "storage", "contracts"},
    "networks": {"contracts", "storage"},
    "prompts": {"networks", "volume", "storage", "contracts"},
    "sam": {"networks", "volume", "storage", "contracts", "prompts"},
    "training": {"networks", "prompts", "sam", "volume", "storage", "contracts"},
    "evaluation": {"networks", "volume", "storage", "contracts"},
    "prediction": {"evaluation", "networks", "volume", "storage", "contracts"},
    "export": {"networks", "sam", "volume", "storage", "contracts"},
    "serving": {"storage", "contracts"},
    "pipeline": {"contracts", "storage"},
    "bench": {
        "contracts",
        "storage",
        "ingest",
        "networks",
        "prompts",
        "sam",
        "training",
        "evaluation",
        "pipeline",
    },
    "cli": None,
}
"""Room to the rooms it may import; None: every room's public modules."""

ROOT_MODULES = {
    "__init__": set(),
    "errors": set(),
    "configuration": {"errors", "refusals"},
    "refusals": {"errors"},
    "experiment": {"errors", "configuration"},
}

NARROW = {
    ("sam", "prompts"): {"prompts.config", "prompts.simulate", "prompts.boxes"},
    # SAM-2 as a student has the networks' interface; it knows no other network.
    ("sam", "networks"): {"networks.base", "networks.config", "networks.device"},
    ("sam", "serving"): {"serving.client", "serving.config"},
    ("training", "sam"): {"sam.promptable", "sam.segmenter"},
}
"""Where a room may import only some modules of another one."""

FORBIDDEN_IN_CONTRACTS = {"torch", "numpy", "nibabel", "kfp", "boto3", "onnx"}


def imported_modules(tree: ast.AST) -> list[str]:
    """Absolute names of every module that a file imports, at any depth of the file."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            # `from sssflow.sam import stage` names a module by its last word.
            names += [f"{base}.{a.name}" for a in node.names] if "sssflow" in base else [base]
    return names


def violations(path: Path, source: Path = SOURCE) -> list[str]:
    """What a file imports against the table, as readable lines."""
    relative = path.relative_to(source)
    room = relative.parts[0] if len(relative.parts) > 1 else ""
    found = []
    for name in imported_modules(ast.parse(path.read_text(encoding="utf-8"))):
        if room == "contracts" and name.split(".")[0] in FORBIDDEN_IN_CONTRACTS:
            found.append(f"{relative}: contracts hold plain data, not {name}")
        parts = name.split(".")
        if parts[0] == "sssflow" and not _allowed(room, relative, parts[1:]):
            found.append(f"{relative}: imports {name}")
    return found


def _allowed(room: str, relative: Path, target: list[str]) -> bool:
    head = target[0] if target else "sssflow"
    if not room:
        if relative.stem == "experiment":
            return head in SHARED or target[1:2] == ["config"] or "config" in target
        return head in ROOT_MODULES[relative.stem]
    if head in SHARED | {"__version__", room}:
        return True
    allowed = ROOMS[room]
    if allowed is None:
        return head in ROOMS or head == "experiment"
    if head == "experiment":
        return room in {"pipeline", "bench"}
    narrow = NARROW.get((room, head))
    if narrow is not None:
        return ".".join(target[:2]) in narrow
    return head in allowed


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def test_every_room_imports_only_what_the_table_allows() -> None:
    files = source_files()
    assert len(files) > LEAST_FILES
    rooms_seen = {p.relative_to(SOURCE).parts[0] for p in files if p.parent != SOURCE}
    assert rooms_seen == set(ROOMS), "a new room needs a row in the table"
    assert {p.stem for p in files if p.parent == SOURCE} == set(ROOT_MODULES)
    assert [line for path in files for line in violations(path)] == []


def module_names_in_strings(path: Path) -> list[str]:
    """Strings of a file that are the dotted name of one of our modules."""
    found = (
        n.value
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    )
    dotted = [v.split(":")[0] for v in found if re.fullmatch(r"sssflow(\.\w+){2,}(:\w+)?", v)]
    return [d for d in dotted if (SOURCE.parent / d.replace(".", "/")).with_suffix(".py").is_file()]


def test_the_network_registry_alone_names_a_module_of_a_later_room() -> None:
    named = [
        (path.relative_to(SOURCE).parts[0], name)
        for path in source_files()
        for name in module_names_in_strings(path)
    ]
    across = [(room, name) for room, name in named if name.split(".")[1] != room and ROOMS[room]]
    assert across == [("networks", "sssflow.sam.segmenter")] == [("networks", *PROVIDED.values())]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("contracts/x.py", "import torch"),
        ("contracts/x.py", "from sssflow.storage.atomic import write_text"),
        ("storage/x.py", "import sssflow.volume.packed"),
        ("evaluation/x.py", "from sssflow.training import loop"),
        ("training/x.py", "from sssflow.sam.torch_backend import TorchBackend"),
        ("pipeline/x.py", "def f():\n    from sssflow.ingest import stage"),
        ("networks/x.py", "from sssflow.sam.segmenter import build_student"),
        ("sam/x.py", "from sssflow.networks.registry import build_network"),
        ("errors.py", "from sssflow import configuration"),
        ("experiment.py", "from sssflow.ingest import stage"),
    ],
)
def test_an_import_against_the_direction_is_seen(tmp_path: Path, place: str, line: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert violations(path, tmp_path)


def printed(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_help_needs_no_heavy_package() -> None:
    code = (
        "import sys; import sssflow.cli.main; "
        "print([m for m in ('torch', 'kfp', 'sam2', 'monai', 'numpy', 'onnx') if m in sys.modules])"
    )
    assert printed(code) == "[]"


def test_the_command_line_starts_without_the_rooms() -> None:
    """Each verb brings what it needs: `--help` must not wait for the settings of trainings."""
    code = (
        "import sys, sssflow.cli.main;"
        "print(sorted({m.split('.')[1] for m in sys.modules if m.startswith('sssflow.')}))"
    )
    assert printed(code) == "['cli', 'configuration', 'errors', 'refusals', 'storage']"
