"""Render the charts with the real Helm; each set of values once per test process."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHARTS = {name: ROOT / "charts" / name for name in ("sam2-triton", "sssflow")}
KUBERNETES = "1.34.0"

OVERLAYS = {
    "sam2-triton": (
        "",
        "values-cpu.yaml",
        "values-gpu.yaml",
        "ci/s3-values.yaml",
        "ci/image-values.yaml",
        "ci/hpa-values.yaml",
        "ci/keda-values.yaml",
    ),
    "sssflow": ("", "ci/full-values.yaml", "ci/namespace-values.yaml"),
}
"""Values files of each chart; the empty name stands for its defaults."""

PROFILES = [(chart, overlay) for chart, overlays in OVERLAYS.items() for overlay in overlays]

NOTES = 'notes: |\n{{ include (print .Template.BasePath "/NOTES.txt") . | indent 2 }}\n'

Object = dict[str, Any]


class Refused(Exception):  # noqa: N818 - it is what the caller asks for
    """Helm did not render; the message is its standard error."""


class Renderer:
    """`helm template` with a memory."""

    def __init__(self, helm: Path) -> None:
        self.helm = helm
        self._cached = functools.cache(self._text)

    def objects(
        self,
        chart: str,
        overlay: str = "",
        values: Object | None = None,
        *,
        release: str = "demo",
        namespace: str = "team",
    ) -> list[Object]:
        """All objects of a release, in Helm's order.

        Raises:
            Refused: The values do not hold to the schema, or a template failed.
        """
        text = self.text(chart, overlay, values, release=release, namespace=namespace)
        return [found for found in yaml.safe_load_all(text) if found]

    def text(
        self,
        chart: str,
        overlay: str = "",
        values: Object | None = None,
        *,
        release: str = "demo",
        namespace: str = "team",
    ) -> str:
        """As `objects`, before it is parsed."""
        return self._cached(chart, overlay, json.dumps(values or {}), release, namespace)

    def notes(self, chart: str, overlay: str = "", values: Object | None = None) -> str:
        """NOTES.txt as a user sees it after the installation.

        `helm template` leaves it out and `helm install` wants a cluster: a copy of the chart gets
        a template that includes it.
        """
        with tempfile.TemporaryDirectory() as folder:
            copy, file = Path(folder) / chart, Path(folder) / "values.json"
            shutil.copytree(CHARTS[chart], copy)
            (copy / "templates" / "notes.yaml").write_text(NOTES, "utf-8")
            file.write_text(json.dumps(values or {}), "utf-8")
            where = ["template", "demo", str(copy), "-n", "team", "-s", "templates/notes.yaml"]
            files = [*self._files(chart, overlay), "-f", str(file)]
            text = self.run(*where, "--kube-version", KUBERNETES, *files)
        return str(yaml.safe_load(text)["notes"])

    def lint(self, chart: str, overlay: str) -> str:
        """Output of `helm lint --strict`."""
        version = ("--kube-version", KUBERNETES)
        return self.run(
            "lint", "--strict", str(CHARTS[chart]), *version, *self._files(chart, overlay)
        )

    def run(self, *arguments: str) -> str:
        """Standard output of Helm.

        Raises:
            Refused: Helm ended with an error.
        """
        done = subprocess.run(
            [str(self.helm), *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Refused(done.stderr + done.stdout)
        return done.stdout

    def _files(self, chart: str, overlay: str) -> list[str]:
        return ["-f", str(CHARTS[chart] / overlay)] if overlay else []

    def _text(self, chart: str, overlay: str, values: str, release: str, namespace: str) -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(values)
            file.flush()
            where = ["template", release, str(CHARTS[chart]), "-n", namespace]
            files = [*self._files(chart, overlay), "-f", file.name]
            return self.run(*where, "--kube-version", KUBERNETES, *files)


def one(objects: list[Object], kind: str, suffix: str = "") -> Object:
    """The only object of a kind, or the only one whose name ends with `suffix`."""
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"{len(found)} {kind} named *{suffix}"
    return found[0]


def kinds(objects: list[Object]) -> set[str]:
    return {found["kind"] for found in objects}


def defaults(chart: str) -> Object:
    """values.yaml of a chart."""
    loaded: Object = yaml.safe_load((CHARTS[chart] / "values.yaml").read_text("utf-8"))
    return loaded


def leaves(values: Object, schema: Object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all values; a map whose keys the user chooses is one value."""
    found: list[tuple[str, ...]] = []
    for key, value in values.items():
        below = schema["properties"][key]
        if isinstance(value, dict) and below.get("additionalProperties") is False:
            found += leaves(value, below, (*path, key))
        else:
            found.append((*path, key))
    return found


def nested(path: tuple[str, ...], value: Any) -> Object:
    """{"a": {"b": value}} for ("a", "b")."""
    for key in reversed(path):
        value = {key: value}
    built: Object = value
    return built
