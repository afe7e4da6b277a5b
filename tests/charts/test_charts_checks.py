"""The checks of this folder see the faults they are for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from charts_pod_security import hardening_gaps, violations
from charts_rendering import Object, Renderer, one
from charts_schemas import client_problems, problems

pytestmark = pytest.mark.timeout(1800)

Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def deployment(charts: Renderer) -> Object:
    return one(charts.objects("sam2-triton"), "Deployment")


FIELD_FAULTS: list[tuple[Change, str]] = [
    (lambda o: o["spec"].update(replica=1), "Deployment.spec.replica: unknown field"),
    (lambda o: o["spec"].update(replicas="1"), "Deployment.spec.replicas: str instead of integer"),
    (lambda o: o["spec"].pop("selector"), "Deployment.spec.selector: missing"),
    (
        lambda o: o["spec"]["template"]["spec"]["containers"][0].update(readonly=True),
        "Deployment.spec.template.spec.containers[0].readonly: unknown field",
    ),
    (lambda o: o["spec"].update(paused="yes"), "Deployment.spec.paused: str instead of boolean"),
    (lambda o: o.update(kind="Deploymint"), "apps/v1/Deploymint: no such kind"),
]


@pytest.mark.parametrize(("change", "line"), FIELD_FAULTS)
def test_a_wrong_field_is_seen(deployment: Object, change: Change, line: str) -> None:
    broken = copy.deepcopy(deployment)
    change(broken)
    assert problems(broken) == [line]


def test_a_field_younger_than_kubernetes_1_30_is_seen(charts: Renderer) -> None:
    young = one(charts.objects("sam2-triton", "ci/image-values.yaml"), "Deployment")
    assert problems(young) == []
    (line,) = client_problems(young)
    assert line.endswith(".image: unknown field")


def test_a_wrong_custom_resource_is_seen(charts: Renderer) -> None:
    scaled = one(charts.objects("sam2-triton", "ci/keda-values.yaml"), "ScaledObject")
    broken = copy.deepcopy(scaled)
    broken["spec"]["triggers"][0]["metricType"] = "Average"
    broken["spec"]["minReplicas"] = 1
    assert len(problems(broken)) == 2


POD_FAULTS: list[tuple[Change, str]] = [
    (lambda s: s.update(hostNetwork=True), "hostNetwork"),
    (lambda s: s["volumes"].append({"name": "h", "hostPath": {"path": "/"}}), "hostPath"),
    (lambda s: s["securityContext"].update(runAsUser=0), "runs as root"),
    (lambda s: s["securityContext"].pop("seccompProfile"), "no seccomp"),
    (lambda s: s["containers"][0]["securityContext"].update(privileged=True), "privileged"),
    (lambda s: s["initContainers"][0].pop("securityContext"), "sync: capabilities"),
    (
        lambda s: s["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "capabilities are added",
    ),
]


@pytest.mark.parametrize(("change", "line"), POD_FAULTS)
def test_a_pod_outside_restricted_is_seen(deployment: Object, change: Change, line: str) -> None:
    spec = copy.deepcopy(deployment["spec"]["template"]["spec"])
    assert violations(spec) == []
    change(spec)
    assert any(line in found for found in violations(spec))


GAPS: list[tuple[Change, str]] = [
    (lambda s: s.pop("automountServiceAccountToken"), "token"),
    (lambda s: s["containers"][0]["resources"]["limits"].pop("memory"), "no limits of memory"),
    (lambda s: s["containers"][0].update(image="registry:5000/triton"), "no fixed version"),
    (lambda s: s["containers"][0].update(image="triton:latest"), "no fixed version"),
    (lambda s: s["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"), "written"),
]


@pytest.mark.parametrize(("change", "line"), GAPS)
def test_a_gap_in_the_hardening_is_seen(deployment: Object, change: Change, line: str) -> None:
    spec = copy.deepcopy(deployment["spec"]["template"]["spec"])
    change(spec)
    assert any(line in found for found in hardening_gaps(spec))
