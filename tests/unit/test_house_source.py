"""What no source file may hold: code that runs data, hidden state, places of one machine, bulk."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WALKED = ("src", "components", "pipelines", "benchmarks", "tools")
LEAST_FILES = 60
MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 50

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_YAML = {"load", "load_all", "unsafe_load", "full_load"}


def python_files() -> list[Path]:
    """Every Python file that is ours and runs outside the tests."""
    return sorted(p for folder in WALKED for p in (ROOT / folder).rglob("*.py"))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute chain; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def is_constant(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def dangers(text: str) -> Iterator[str]:
    """Every way in which a file would run data as code, or trust it blindly."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in FORBIDDEN_MODULES:
                    yield f"line {node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            # torch refuses a foreign checkpoint with this class; to catch it is no danger.
            only_the_error = [alias.name for alias in node.names] == ["UnpicklingError"]
            if (node.module or "").split(".")[0] in FORBIDDEN_MODULES and not only_the_error:
                yield f"line {node.lineno}: from {node.module}"
        elif isinstance(node, ast.Call):
            yield from _call_dangers(node)


def _call_dangers(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
    keywords = {k.arg: k.value for k in call.keywords if k.arg}
    if name in FORBIDDEN_CALLS:
        yield f"line {call.lineno}: {name}()"
    if name.startswith("yaml.") and name.split(".")[1] in UNSAFE_YAML:
        yield f"line {call.lineno}: {name}(), use yaml.safe_load"
    if name == "torch.load" and not is_constant(keywords.get("weights_only", call.func), True):
        yield f"line {call.lineno}: torch.load without weights_only=True"
    if "allow_pickle" in keywords and not is_constant(keywords["allow_pickle"], False):
        yield f"line {call.lineno}: allow_pickle"
    if "shell" in keywords and not is_constant(keywords["shell"], False):
        yield f"line {call.lineno}: shell"
    if name in {"os.system", "os.popen", "torch.hub.load"}:
        yield f"line {call.lineno}: {name}()"


def hidden_inputs(text: str) -> Iterator[str]:
    """Prints and reads of the environment, which belong to the command line alone."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and dotted(node.func) in {"print", "os.getenv", "input"}:
            yield f"line {node.lineno}: {dotted(node.func)}()"
        if isinstance(node, ast.Attribute) and dotted(node) in {"os.environ", "os.environb"}:
            yield f"line {node.lineno}: os.environ"


def is_below_the_command_line(path: Path) -> bool:
    source = ROOT / "src" / "sssflow"
    return path.is_relative_to(source) and not path.is_relative_to(source / "cli")


def test_no_file_runs_data_as_code() -> None:
    files = python_files()
    assert len(files) > LEAST_FILES
    found = [f"{p.relative_to(ROOT)} {d}" for p in files for d in dangers(p.read_text("utf-8"))]
    assert found == []


def test_only_the_command_line_prints_and_reads_the_environment() -> None:
    files = [p for p in python_files() if is_below_the_command_line(p)]
    assert len(files) > LEAST_FILES - 15
    found = [
        f"{p.relative_to(ROOT)} {d}" for p in files for d in hidden_inputs(p.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_each_danger_is_seen(line: str) -> None:
    assert len(list(dangers(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "re.compile(text)",
        "model.eval()",
        "np.load(path, allow_pickle=False)",
    ],
)
def test_what_is_safe_passes(line: str) -> None:
    assert list(dangers(line)) == []


@pytest.mark.parametrize("line", ["print(1)", "os.getenv('A')", "os.environ['A']"])
def test_each_hidden_input_is_seen(line: str) -> None:
    assert len(list(hidden_inputs(line))) == 1


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef, *, body_only: bool) -> int:
    """Lines of a function without its docstring; `body_only`: without its signature too."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if body_only:
        first = node.body[1] if documented and len(node.body) > 1 else first
        return (node.end_lineno or 0) - first.lineno + 1
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def too_long(path: Path, text: str) -> Iterator[str]:
    """The file and the functions of it that exceed the limits."""
    if len(text.splitlines()) > MOST_FILE_LINES:
        yield f"{path}: {len(text.splitlines())} lines"
    if path.parts[0] == "tests":
        return
    # The signature of a component, a pipeline or a verb is its interface, one name per line.
    is_interface = path.parts[0] in {"components", "pipelines"} or "cli" in path.parts
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = function_lines(node, body_only=is_interface)
            if lines > MOST_FUNCTION_LINES:
                yield f"{path}: {node.name} {lines} lines"


def test_files_and_functions_are_small() -> None:
    files = python_files() + sorted((ROOT / "tests").rglob("*.py"))
    assert len(files) > LEAST_FILES
    found = [d for p in files for d in too_long(p.relative_to(ROOT), p.read_text("utf-8"))]
    assert found == []


def test_a_long_file_and_a_long_function_are_seen() -> None:
    body = "    x = 1\n" * 50
    assert list(too_long(Path("src/a.py"), f"def f():\n{body}")) == ["src/a.py: f 51 lines"]
    assert list(too_long(Path("src/a.py"), f'def f():\n    """Say."""\n{body[10:]}')) == []
    assert list(too_long(Path("components/a.py"), f"def f(\n    a,\n):\n{body}")) == []
    assert list(too_long(Path("src/a.py"), "x = 1\n" * 401)) == ["src/a.py: 401 lines"]


# Names in pieces, so that this file does not hold what it looks for.
MACHINE_PLACES = re.compile(
    "|".join(
        (r"/ro" + "ot/", r"/wo" + r"rk/(?:main|shared)", r"/ho" + r"me/[a-z]", r"/Us" + "ers/")
    )
)
INDEX_HOSTS = re.compile(
    r"(?i)(?:pyp" + r"i\.(?:org|io)|files\.python" + r"hosted\.org|local" + r"host:\d)"
)
TEXT_ENDINGS = {".py", ".md", ".toml", ".txt", ".in", ".yaml", ".yml", ".json", ".sh", ".html", ""}


def committed_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_committed_file_names_a_machine_or_an_index() -> None:
    files = [p for p in committed_files() if p.suffix in TEXT_ENDINGS]
    assert len(files) > LEAST_FILES
    found = []
    for path in files:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if MACHINE_PLACES.search(line) or INDEX_HOSTS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_no_scan_and_no_large_file_is_committed() -> None:
    files = committed_files()
    assert len(files) > LEAST_FILES
    scans = (".h5", ".nii", ".nii.gz", ".dcm", ".mha", ".nrrd", ".pt", ".pth", ".ckpt")
    assert [p.name for p in files if p.name.endswith(scans)] == []
    limit_bytes = 10_000_000
    assert [p.name for p in files if p.stat().st_size > limit_bytes] == []
