"""How the init container of sam2-triton opens an object store: temporary keys, a private CA."""

from __future__ import annotations

from typing import Any

import pytest
from charts_rendering import Renderer, one

pytestmark = pytest.mark.timeout(1800)

OVERLAY = "ci/s3-values.yaml"


def _pod(charts: Renderer, **ca: str) -> Any:
    values = {"modelRepository": {"s3": {"ca": ca}}}
    return one(charts.objects("sam2-triton", OVERLAY, values), "Deployment")["spec"]["template"]


def _environment(container: Any) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}


def test_temporary_keys_come_with_their_token_and_lasting_ones_need_none(charts: Renderer) -> None:
    sync = _pod(charts)["spec"]["initContainers"][0]
    token = _environment(sync)["AWS_SESSION_TOKEN"]["secretKeyRef"]
    assert token == {"name": "s3-credentials", "key": "AWS_SESSION_TOKEN", "optional": True}


def test_a_private_ca_is_mounted_for_the_init_container_alone(charts: Renderer) -> None:
    pod = _pod(charts, key="root.pem")["spec"]
    sync, triton = pod["initContainers"][0], pod["containers"][0]
    mount = next(m for m in sync["volumeMounts"] if m["name"] == "s3-ca")
    assert mount == {"name": "s3-ca", "mountPath": "/etc/sssflow-s3-ca", "readOnly": True}
    assert _environment(sync)["AWS_CA_BUNDLE"] == "/etc/sssflow-s3-ca/ca.crt"
    volume = next(v for v in pod["volumes"] if v["name"] == "s3-ca")
    items = [{"key": "root.pem", "path": "ca.crt"}]
    assert volume["configMap"] == {"name": "hospital-ca", "items": items}
    assert "s3-ca" not in {m["name"] for m in triton["volumeMounts"]}


def test_without_a_ca_of_its_own_nothing_is_mounted(charts: Renderer) -> None:
    pod = _pod(charts, configMap="")["spec"]
    assert "AWS_CA_BUNDLE" not in _environment(pod["initContainers"][0])
    assert "s3-ca" not in {v["name"] for v in pod["volumes"]}
