"""The locks are complete, hashed, consistent, and silent about where they were made."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("dev", "runtime", "build", "bootstrap", "triton", "sbom")
PINS = {
    "kfp": "2.17.0",
    "kfp-kubernetes": "2.17.0",
    "sam2": "1.1.0",
    "torch": "2.15.0",
    "torchvision": "0.29.2",
    "monai": "1.6.1",
    "onnx": "1.23.2",
    "onnxruntime": "1.31.1",
    "tritonclient": "2.73.0",
    "ml-dtypes": "0.5.4",
}
REQUIREMENT = re.compile(
    r"^([a-z0-9][a-z0-9-]*)(\[[a-z,]+\])?==([0-9][0-9a-z.+!]*)( ; [^\\]+)? \\$"
)
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def read_lock(text: str) -> dict[str, tuple[str, int]]:
    """Name to version and number of hashes.

    Raises:
        ValueError: A line is neither a pinned requirement nor a hash.
    """
    found: dict[str, tuple[str, int]] = {}
    name = ""
    for number, line in enumerate(text.splitlines(), start=1):
        requirement = REQUIREMENT.match(line)
        if requirement:
            name = requirement[1]
            if name in found:
                raise ValueError(f"line {number}: {name} twice")
            found[name] = (requirement[3], 0)
        elif HASH.match(line) and name:
            version, hashes = found[name]
            found[name] = (version, hashes + 1)
        else:
            raise ValueError(f"line {number}: {line}")
    return found


def lock(name: str) -> dict[str, tuple[str, int]]:
    return read_lock((ROOT / "requirements" / f"{name}.txt").read_text("utf-8"))


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_a_pin_or_a_hash_and_every_pin_has_a_hash(name: str) -> None:
    pins = lock(name)
    assert pins
    assert [p for p, (_, hashes) in pins.items() if hashes == 0] == []


def test_there_is_no_other_lock() -> None:
    assert {p.stem for p in (ROOT / "requirements").glob("*.txt")} == set(LOCKS)


def test_the_pins_are_those_that_the_project_was_built_on() -> None:
    pins = {name: version for name, (version, _) in lock("dev").items()}
    assert {name: pins.get(name) for name in PINS} == PINS


@pytest.mark.parametrize("name", ["runtime", "build"])
def test_a_smaller_lock_is_a_part_of_the_large_one(name: str) -> None:
    large, small = lock("dev"), lock(name)
    assert len(small) < len(large)
    assert {p: v for p, (v, _) in small.items()} == {p: large[p][0] for p in small}


def test_every_dependency_of_the_project_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(d for e in ("cpu", "kfp", "serving") for d in extras[e])]
    names = {re.split(r"[\[<>=;! ]", w, maxsplit=1)[0].lower() for w in wanted}
    assert len(names) > 20
    assert names - set(lock("runtime")) == set()


@pytest.mark.parametrize(
    "text",
    [
        "--index-url x\n",
        "--find-links wheels\n",
        "torch>=2\n",
        "torch @ file:///x\n",
        "# made on some machine\n",
    ],
)
def test_a_line_that_is_no_pin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        read_lock(text)
