"""What holds for both charts and every profile."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from charts_pod_security import hardening_gaps, violations
from charts_rendering import (
    CHARTS,
    OVERLAYS,
    PROFILES,
    ROOT,
    Object,
    Renderer,
    defaults,
    kinds,
    leaves,
)
from charts_schemas import CUSTOM, client_problems, problems

pytestmark = pytest.mark.timeout(1800)  # the first test may have to build Helm

LABELS = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
}
EVERY_KIND = {
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "LimitRange",
    "LocalQueue",
    "Namespace",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "PrometheusRule",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "ScaledObject",
    "Secret",
    "Service",
    "ServiceAccount",
    "ServiceMonitor",
}
ONE_PER_NAMESPACE = {"kfp-launcher"}


def _pods(objects: list[Object]) -> list[Object]:
    return [o["spec"]["template"] for o in objects if o["kind"] == "Deployment"]


@pytest.mark.parametrize(("chart", "overlay"), PROFILES)
def test_helm_lint_finds_nothing(charts: Renderer, chart: str, overlay: str) -> None:
    assert "0 chart(s) failed" in charts.lint(chart, overlay)


@pytest.mark.parametrize(("chart", "overlay"), PROFILES)
def test_every_object_holds_to_its_kubernetes_schema(
    charts: Renderer, chart: str, overlay: str
) -> None:
    objects = charts.objects(chart, overlay)
    assert len(objects) >= 5
    assert [line for o in objects for line in problems(o)] == []


@pytest.mark.parametrize(("chart", "overlay"), PROFILES)
def test_names_of_digits_alone_stay_text(charts: Renderer, chart: str, overlay: str) -> None:
    """Such releases and namespaces are legal: a date, a number of a build."""
    names = {"nameOverride": "7", "fullnameOverride": "42"}
    objects = charts.objects(chart, overlay, names, release="2026", namespace="123")
    assert [line for o in objects for line in problems(o)] == []


@pytest.mark.parametrize(("chart", "overlay"), PROFILES)
def test_the_oldest_supported_kubernetes_knows_every_field(
    charts: Renderer, chart: str, overlay: str
) -> None:
    if overlay == "ci/image-values.yaml":
        pytest.skip("images as volumes are younger than Kubernetes 1.30, as the value says")
    own = [
        o for o in charts.objects(chart, overlay) if f"{o['apiVersion']}/{o['kind']}" not in CUSTOM
    ]
    assert own
    assert [line for o in own for line in client_problems(o)] == []


def test_the_profiles_render_every_kind(charts: Renderer) -> None:
    seen = [kinds(charts.objects(chart, overlay)) for chart, overlay in PROFILES]
    assert set().union(*seen) == EVERY_KIND


@pytest.mark.parametrize("chart", CHARTS)
def test_every_template_renders_in_some_profile(charts: Renderer, chart: str) -> None:
    templates = {p.name for p in (CHARTS[chart] / "templates").glob("*.yaml")}
    texts = [charts.text(chart, overlay) for overlay in OVERLAYS[chart]]
    rendered = {m for text in texts for m in re.findall(r"# Source: .*/templates/(\S+)", text)}
    assert rendered == templates
    assert len(templates) >= 7


@pytest.mark.parametrize(("chart", "overlay"), PROFILES)
def test_names_and_labels_are_whole(charts: Renderer, chart: str, overlay: str) -> None:
    objects = charts.objects(chart, overlay)
    for found in objects:
        metadata = found["metadata"]
        assert set(metadata["labels"]) >= LABELS, found["kind"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", metadata["name"])
        assert metadata.get("namespace") or found["kind"] == "Namespace"
    identities = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("overlay", OVERLAYS["sam2-triton"])
def test_everything_that_selects_pods_selects_the_pods_of_its_release(
    charts: Renderer, overlay: str
) -> None:
    objects = charts.objects("sam2-triton", overlay)
    (pod,) = _pods(objects)
    selectors = [
        o["spec"].get("selector", o["spec"].get("podSelector"))
        for o in objects
        if o["kind"] in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy")
    ]
    assert len(selectors) == 5
    for selector in selectors:
        labels = selector.get("matchLabels", selector)
        assert labels["app.kubernetes.io/instance"] == "demo"
        assert labels.items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("overlay", OVERLAYS["sam2-triton"])
def test_pods_hold_to_pod_security_restricted_and_more(charts: Renderer, overlay: str) -> None:
    pods = _pods(charts.objects("sam2-triton", overlay))
    assert len(pods) == 1
    for pod in pods:
        assert violations(pod["spec"]) == []
        assert hardening_gaps(pod["spec"]) == []


@pytest.mark.parametrize(("chart", "overlay"), PROFILES)
def test_two_releases_in_one_namespace_do_not_collide(
    charts: Renderer, chart: str, overlay: str
) -> None:
    first, second = (
        {
            (o["kind"], o["metadata"]["name"])
            for o in charts.objects(chart, overlay, release=release)
            if o["metadata"]["name"] not in ONE_PER_NAMESPACE and o["kind"] != "Namespace"
        }
        for release in ("demo", "demo-b")
    )
    assert len(first) == len(second)
    assert first & second == set()


def test_one_release_does_not_select_the_pods_of_another(charts: Renderer) -> None:
    pods, selectors = [], []
    for release in ("demo", "demo-b"):
        objects = charts.objects("sam2-triton", release=release)
        pods.append(_pods(objects)[0]["metadata"]["labels"])
        selectors.append(next(o for o in objects if o["kind"] == "Service")["spec"]["selector"])
    assert not selectors[0].items() <= pods[1].items()
    assert not selectors[1].items() <= pods[0].items()


def test_an_upgrade_with_any_values_keeps_the_selector(charts: Renderer) -> None:
    found = []
    for overlay in OVERLAYS["sam2-triton"]:
        objects = charts.objects("sam2-triton", overlay)
        found += [o["spec"]["selector"] for o in objects if o["kind"] == "Deployment"]
    assert len(found) == len(OVERLAYS["sam2-triton"])
    assert all(selector == found[0] for selector in found)
    assert found[0]["matchLabels"] == {
        "app.kubernetes.io/name": "sam2-triton",
        "app.kubernetes.io/instance": "demo",
    }


@pytest.mark.parametrize("chart", CHARTS)
def test_long_release_names_still_give_legal_names(charts: Renderer, chart: str) -> None:
    objects = charts.objects(chart, release="a" * 53)
    names = [o["metadata"]["name"] for o in objects]
    assert max(len(name) for name in names) <= 63
    assert all(not name.endswith("-") for name in names)


@pytest.mark.parametrize("chart", CHARTS)
def test_every_value_is_described_by_the_schema_and_the_readme(chart: str) -> None:
    schema = json.loads((CHARTS[chart] / "values.schema.json").read_text("utf-8"))
    values = defaults(chart)
    assert set(schema["properties"]) - set(values) == {"global"}
    paths = leaves(values, schema)
    assert len(paths) > 30
    readme = (CHARTS[chart] / "README.md").read_text("utf-8")
    assert [path for path in paths if f"| `{'.'.join(path)}` |" not in readme] == []


def test_the_readmes_are_what_the_tool_would_write() -> None:
    command = [sys.executable, str(ROOT / "tools" / "charts.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("chart", CHARTS)
def test_the_schema_refuses_unknown_keys_at_every_level(chart: str) -> None:
    schema = json.loads((CHARTS[chart] / "values.schema.json").read_text("utf-8"))
    open_maps = []

    def walk(part: Object, path: str) -> None:
        if part.get("type") == "object" and "properties" in part:
            if part.get("additionalProperties") is not False:
                open_maps.append(path)
            for key, below in part["properties"].items():
                walk(below, f"{path}.{key}")

    walk(schema, "")
    # Requests and limits: any resource of the cluster, always a quantity.
    assert all(path.endswith((".requests", ".limits")) for path in open_maps)
