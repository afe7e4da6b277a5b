"""Template by template: what a release of sam2-triton is made of."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from charts_rendering import Object, Refused, Renderer, kinds, one

from sssflow.contracts.sam2_graphs import GRAPHS

pytestmark = pytest.mark.timeout(1800)

CHART = "sam2-triton"
S3, IMAGE, HPA, KEDA = (f"ci/{name}-values.yaml" for name in ("s3", "image", "hpa", "keda"))
GPU = "values-gpu.yaml"


def _spec(charts: Renderer, overlay: str = "", values: Object | None = None) -> Any:
    return one(charts.objects(CHART, overlay, values), "Deployment")["spec"]["template"]["spec"]


def _triton(charts: Renderer, overlay: str = "", values: Object | None = None) -> Any:
    return _spec(charts, overlay, values)["containers"][0]


def _sync(charts: Renderer, overlay: str = "", values: Object | None = None) -> Any:
    return _spec(charts, overlay, values)["initContainers"][0]


def _volume(spec: Any, name: str) -> Any:
    return next(v for v in spec["volumes"] if v["name"] == name)


def _environment(container: Any) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}


def test_triton_guesses_nothing_and_loads_what_was_named(charts: Renderer) -> None:
    arguments = _triton(charts)["args"]
    assert arguments[0] == "tritonserver"
    assert "--model-control-mode=explicit" in arguments
    assert "--disable-auto-complete-config" in arguments
    assert "--strict-readiness=true" in arguments
    assert "--exit-on-error=true" in arguments
    assert "--exit-timeout-secs=30" in arguments
    loads = [a for a in arguments if a.startswith("--load-model=")]
    assert loads == [f"--load-model=sam2_{name}" for name in (*GRAPHS, "predict")]


def test_inference_by_http_is_closed_by_the_key_unless_it_is_opened(charts: Renderer) -> None:
    rule = "--http-restricted-api=inference:sssflow-admin-key=$(TRITON_ADMIN_KEY)"
    opened = _triton(charts, "", {"server": {"httpInference": True}})["args"]
    assert rule not in opened
    closed = _triton(charts)["args"]
    assert rule in closed
    assert not [a for a in closed if a.startswith("--grpc-restricted") and "inference" in a]


def test_inference_by_http_is_never_left_open_for_want_of_a_key(charts: Renderer) -> None:
    values = {"server": {"httpInference": False}, "adminApi": {"restricted": []}}
    with pytest.raises(Refused, match="closes inference by HTTP with the key"):
        charts.text(CHART, "", values)


def test_a_grpc_connection_ends_after_a_while_unless_that_is_0(charts: Renderer) -> None:
    for seconds, wanted in ((300, ["--grpc-max-connection-age=300000"]), (0, [])):
        values = {"server": {"grpcConnectionSeconds": seconds}}
        arguments = _triton(charts, "", values)["args"]
        assert [a for a in arguments if "connection-age" in a] == wanted
    assert "--grpc-max-connection-age=300000" in _triton(charts)["args"]


def test_a_cache_of_size_0_is_no_cache(charts: Renderer) -> None:
    for size, wanted in ((0, []), (512, ["--cache-config=local,size=536870912"])):
        arguments = _triton(charts, "", {"server": {"responseCacheMiB": size}})["args"]
        assert [a for a in arguments if a.startswith("--cache-config")] == wanted


def test_the_admin_apis_need_the_key_of_the_secret(charts: Renderer) -> None:
    triton = _triton(charts)
    names = "shared-memory,model-repository,model-config,statistics,trace,logging"
    rule = f"{names}:sssflow-admin-key=$(TRITON_ADMIN_KEY)"
    assert f"--http-restricted-api={rule}" in triton["args"]
    assert f"--grpc-restricted-protocol={rule}" in triton["args"]
    reference = _environment(triton)["TRITON_ADMIN_KEY"]["secretKeyRef"]
    assert reference == {"name": "demo-sam2-triton-admin", "key": "key"}


def test_a_given_admin_key_stands_in_the_secret_and_rolls_the_pods(charts: Renderer) -> None:
    first, second = (
        charts.objects(CHART, "", {"adminApi": {"key": key}}) for key in ("one", "two")
    )
    assert base64.b64decode(one(first, "Secret")["data"]["key"]) == b"one"
    sums = [
        one(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"][
            "checksum/admin-key"
        ]
        for objects in (first, second)
    ]
    assert sums[0] != sums[1]
    assert "one" not in sums[0]


def test_a_key_that_nobody_gave_is_long_and_random(charts: Renderer) -> None:
    keys = [
        base64.b64decode(one(charts.objects(CHART, release=r), "Secret")["data"]["key"])
        for r in ("first", "second")
    ]
    assert len(keys[0]) == len(keys[1]) == 32
    assert keys[0] != keys[1]


def test_an_existing_secret_is_used_and_none_is_made(charts: Renderer) -> None:
    objects = charts.objects(CHART, HPA)
    assert "Secret" not in kinds(objects)
    reference = _environment(_triton(charts, HPA))["TRITON_ADMIN_KEY"]["secretKeyRef"]
    assert reference["name"] == "triton-admin"


def test_without_restricted_apis_there_is_no_key_and_a_warning(charts: Renderer) -> None:
    values = {"adminApi": {"restricted": []}, "server": {"httpInference": True}}
    assert "Secret" not in kinds(charts.objects(CHART, "", values))
    assert "TRITON_ADMIN_KEY" not in _environment(_triton(charts, "", values))
    assert "no API is restricted" in charts.notes(CHART, "", values)


def test_readiness_asks_the_model_and_start_waits_for_all(charts: Renderer) -> None:
    triton = _triton(charts)
    assert triton["readinessProbe"]["httpGet"]["path"] == "/v2/models/sam2_predict/ready"
    assert triton["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert triton["startupProbe"]["httpGet"]["path"] == "/v2/health/ready"
    start = triton["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] == 600


def test_the_readiness_model_must_be_one_of_the_models(charts: Renderer) -> None:
    with pytest.raises(Refused, match='readinessModel "segmenter" is not one of models'):
        charts.text(CHART, "", {"readinessModel": "segmenter"})


@pytest.mark.parametrize(("drain", "timeout", "grace"), [(10, 30, 55), (0, 5, 20), (20, 120, 155)])
def test_the_pod_drains_then_triton_ends_then_it_would_be_killed(
    charts: Renderer, drain: int, timeout: int, grace: int
) -> None:
    values = {"server": {"drainSeconds": drain, "exitTimeoutSeconds": timeout}}
    spec = _spec(charts, "", values)
    assert spec["terminationGracePeriodSeconds"] == grace
    hook = spec["containers"][0].get("lifecycle")
    assert hook == ({"preStop": {"sleep": {"seconds": drain}}} if drain else None)


def test_what_is_written_goes_to_volumes_and_the_models_cannot_be_written(
    charts: Renderer,
) -> None:
    spec = _spec(charts)
    mounts = {m["mountPath"]: m for m in spec["containers"][0]["volumeMounts"]}
    assert set(mounts) == {"/models", "/tmp", "/cache", "/dev/shm"}  # noqa: S108
    assert mounts["/models"]["readOnly"] is True
    assert _volume(spec, "shm")["emptyDir"] == {"medium": "Memory", "sizeLimit": "256Mi"}
    written = {
        m["mountPath"] for m in spec["initContainers"][0]["volumeMounts"] if not m.get("readOnly")
    }
    assert written == {"/models", "/tmp"}  # noqa: S108


def test_the_models_come_from_a_claim_mounted_read_only(charts: Renderer) -> None:
    values = {"modelRepository": {"path": "models/v3", "digest": "c" * 64}}
    sync = _sync(charts, "", values)
    assert sync["command"] == ["sssflow"]
    assert sync["args"] == [
        "serve",
        "sync",
        "file:///source/models/v3",
        "/models",
        f"--digest={'c' * 64}",
        "--model=sam2_encoder",
        "--model=sam2_decoder",
        "--model=sam2_memory_attention",
        "--model=sam2_memory_encoder",
        "--model=sam2_predict",
    ]
    assert {"name": "source", "mountPath": "/source", "readOnly": True} in sync["volumeMounts"]
    source = _volume(_spec(charts, "", values), "source")
    assert source["persistentVolumeClaim"] == {"claimName": "sam2-models"}


def test_the_models_come_from_s3_and_only_the_init_container_has_the_keys(
    charts: Renderer,
) -> None:
    spec = _spec(charts, S3)
    sync, triton = spec["initContainers"][0], spec["containers"][0]
    assert sync["args"][2] == "s3://models/sam2"
    environment = _environment(sync)
    assert environment["AWS_ENDPOINT_URL_S3"] == "http://s3.object-store.svc.cluster.local"
    assert environment["AWS_REGION"] == environment["AWS_DEFAULT_REGION"] == "us-east-1"
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert environment[key] == {"secretKeyRef": {"name": "s3-credentials", "key": key}}
    assert not any(name.startswith("AWS") for name in _environment(triton))
    assert "source" not in {v["name"] for v in spec["volumes"]}


def test_the_models_come_from_an_image_by_digest(charts: Renderer) -> None:
    spec = _spec(charts, IMAGE)
    assert "@sha256:" in _volume(spec, "source")["image"]["reference"]
    assert spec["initContainers"][0]["args"][2] == "file:///source/repository"


def test_a_digest_wins_over_a_tag(charts: Renderer) -> None:
    digest = f"sha256:{'d' * 64}"
    triton = _triton(charts, "", {"image": {"digest": digest}})
    assert triton["image"] == f"nvcr.io/nvidia/tritonserver@{digest}"


def test_the_cpu_profile_computes_with_as_many_threads_as_its_limit(charts: Renderer) -> None:
    triton = _triton(charts, "values-cpu.yaml")
    environment = _environment(triton)
    assert environment["OMP_NUM_THREADS"]["resourceFieldRef"]["resource"] == "limits.cpu"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert set(triton["resources"]["limits"]) == {"cpu", "memory"}


def test_the_gpu_profile_asks_for_gpus_under_their_name(charts: Renderer) -> None:
    values = {"gpu": {"resourceName": "nvidia.com/mig-3g.40gb", "count": 2}}
    spec = _spec(charts, GPU, values)
    resources = spec["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/mig-3g.40gb"] == "2"
    assert resources["requests"]["nvidia.com/mig-3g.40gb"] == "2"
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "OMP_NUM_THREADS" not in _environment(spec["containers"][0])


def test_the_services_lead_to_the_ports_by_name(charts: Renderer) -> None:
    objects = charts.objects(CHART)
    plain = one(objects, "Service", "demo-sam2-triton")["spec"]
    pods = one(objects, "Service", "-headless")["spec"]
    assert plain["type"] == "ClusterIP"
    assert {p["name"]: p["port"] for p in plain["ports"]} == {"http": 8000, "grpc": 8001}
    assert pods["clusterIP"] == "None"
    assert {p["name"] for p in pods["ports"]} == {"http", "grpc", "metrics"}
    ports = {p["name"]: p["containerPort"] for p in _triton(charts)["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    assert all(p["targetPort"] in ports for p in plain["ports"] + pods["ports"])


def test_without_an_autoscaler_the_replicas_are_the_user_s(charts: Renderer) -> None:
    objects = charts.objects(CHART, "", {"replicas": 3})
    assert one(objects, "Deployment")["spec"]["replicas"] == 3
    assert not kinds(objects) & {"HorizontalPodAutoscaler", "ScaledObject"}


def test_the_autoscaler_keeps_to_the_queue_ratio(charts: Renderer) -> None:
    objects = charts.objects(CHART, HPA)
    assert "replicas" not in one(objects, "Deployment")["spec"]
    scaler = one(objects, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == "demo-sam2-triton"
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "triton_queue_compute_ratio"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "500m"}
    assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300
    notes = charts.notes(CHART, HPA)
    assert "prometheus-adapter" in notes


def test_the_rule_divides_waiting_by_computing_for_the_pods_of_this_release(
    charts: Renderer,
) -> None:
    (rule,) = one(charts.objects(CHART, HPA), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert rule["record"] == "triton_queue_compute_ratio"
    pods = '{namespace="team",pod=~"demo-sam2-triton-[a-z0-9]+-[a-z0-9]+"}'
    assert rule["expr"] == (
        f"sum by (namespace, pod) (rate(nv_inference_queue_duration_us{pods}[1m])) / clamp_min("
        f"sum by (namespace, pod) (rate(nv_inference_compute_infer_duration_us{pods}[1m])), 1)"
    )


def test_keda_compares_the_mean_and_does_not_divide_it_again(charts: Renderer) -> None:
    objects = charts.objects(CHART, KEDA)
    scaled = one(objects, "ScaledObject")["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["metricType"] == "Value"
    assert trigger["metadata"]["threshold"] == "0.5"
    assert trigger["metadata"]["query"].startswith("avg(sum by (namespace, pod)")
    assert trigger["metadata"]["query"].endswith(" or vector(0)")
    assert scaled["scaleTargetRef"]["name"] == "demo-sam2-triton"
    assert "HorizontalPodAutoscaler" not in kinds(objects)


def test_the_monitor_scrapes_every_pod_once(charts: Renderer) -> None:
    objects = charts.objects(CHART, HPA)
    wanted = one(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    services = [o for o in objects if o["kind"] == "Service"]
    chosen = [s for s in services if wanted.items() <= s["metadata"]["labels"].items()]
    assert [s["metadata"]["name"] for s in chosen] == ["demo-sam2-triton-headless"]
    assert "metrics" in {p["name"] for p in chosen[0]["spec"]["ports"]}


def test_operators_that_are_not_there_are_not_needed(charts: Renderer) -> None:
    apis = {o["apiVersion"] for o in charts.objects(CHART)}
    assert apis == {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1"}


def test_a_drain_takes_one_pod_and_never_waits_for_a_sick_one(charts: Renderer) -> None:
    budget = one(charts.objects(CHART), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_the_policy_lets_the_namespace_in_and_nothing_out(charts: Renderer) -> None:
    policy = one(charts.objects(CHART), "NetworkPolicy")["spec"]
    clients, monitoring = policy["ingress"]
    assert clients["from"] == [{"podSelector": {}}]
    assert {p["port"] for p in clients["ports"]} == {"http", "grpc"}
    assert {p["port"] for p in monitoring["ports"]} == {"metrics"}
    assert policy["egress"] == []
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("", 443),
        ("https://store", 443),
        ("http://store.team.svc", 80),
        ("http://store:7070", 7070),
        ("https://10.0.0.1:9000", 9000),
    ],
)
def test_the_policy_opens_the_port_of_the_object_store(
    charts: Renderer, url: str, port: int
) -> None:
    values = {"modelRepository": {"s3": {"endpointUrl": url}}}
    names, store, *_ = one(charts.objects(CHART, S3, values), "NetworkPolicy")["spec"]["egress"]
    assert {(p["port"], p["protocol"]) for p in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert store["ports"] == [{"port": port, "protocol": "TCP"}]
    assert "to" not in store


@pytest.mark.parametrize(
    ("url", "namespace"),
    [
        ("http://store.object-store.svc", "object-store"),
        ("http://store.object-store.svc.cluster.local:80", "object-store"),
        ("https://store-0.store.object-store.svc.cluster.local", "object-store"),
        ("http://store:7070", "team"),
        ("https://store.example", None),
        ("https://10.0.0.1:9000", None),
        ("", None),
    ],
)
def test_the_policy_opens_the_pods_of_a_store_whose_service_has_another_port(
    charts: Renderer, url: str, namespace: str | None
) -> None:
    values = {"modelRepository": {"s3": {"endpointUrl": url}}}
    _, _, *inside = one(charts.objects(CHART, S3, values), "NetworkPolicy")["spec"]["egress"]
    label = {"kubernetes.io/metadata.name": namespace}
    peers = [{"namespaceSelector": {"matchLabels": label}}]
    assert inside == ([{"to": peers}] if namespace else [])
    named = [{"podSelector": {"matchLabels": {"app": "store"}}}]
    values["networkPolicy"] = {"objectStore": named}  # type: ignore[assignment]
    _, *rules = one(charts.objects(CHART, S3, values), "NetworkPolicy")["spec"]["egress"]
    assert all(rule["to"] == named for rule in rules)


def test_the_cluster_may_choose_the_user(charts: Renderer) -> None:
    chosen = {"podSecurity": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
    security = _spec(charts, "", chosen)["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(security)
    assert security["runAsNonRoot"] is True
    ids = {name: _spec(charts)["securityContext"][name] for name in chosen["podSecurity"]}
    assert ids == {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    text = charts.text(CHART, "", {"podSecurity": {"runAsUser": 1000700000}})
    assert "runAsUser: 1000700000\n" in text  # Helm would write 1.0007e+09, which is no integer


def test_parts_of_a_core_are_written_as_numbers_too(charts: Renderer) -> None:
    wanted = {"requests": {"cpu": 0.5}, "limits": {"cpu": 1.5}}
    (container,) = _spec(charts, "", {"resources": wanted})["containers"]
    assert container["resources"]["requests"]["cpu"] == 0.5
    assert container["resources"]["limits"]["cpu"] == 1.5


def test_pods_spread_over_nodes(charts: Renderer) -> None:
    (spread,) = _spec(charts)["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "demo"


def test_the_notes_say_where_to_connect_and_what_to_run(charts: Renderer) -> None:
    notes = charts.notes(CHART)
    assert "demo-sam2-triton.team.svc:8001" in notes
    assert "kubectl -n team rollout status deployment/demo-sam2-triton" in notes
    assert "of claim sam2-models" in notes
    assert "get secret demo-sam2-triton-admin" in notes
    assert "WARNING" not in notes
    assert "WARNING: no NetworkPolicy" in charts.notes(
        CHART, "", {"networkPolicy": {"enabled": False}}
    )
