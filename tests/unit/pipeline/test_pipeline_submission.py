"""What a submission asks KFP to run: the compiled pipeline, its placement, nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

pytest.importorskip("kfp.kubernetes")

from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from sssflow.errors import UsageError
from sssflow.experiment import ExperimentConfig
from sssflow.pipeline.config import NodesConfig
from sssflow.pipeline.ir import compiled_pipeline
from sssflow.pipeline.submission import (
    Placement,
    parameters_for,
    parse_certificates,
    parse_label,
    parse_toleration,
    require_digest,
    spec_for,
)

IMAGE = "registry.example:5000/team/sssflow@sha256:" + "a" * 64
NODES = NodesConfig(nodes=2, image=IMAGE, claim="shared", claim_path="/mnt/shared")
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def containers(spec: dict[str, Any]) -> dict[str, Any]:
    executors = spec["pipeline_spec"]["deploymentSpec"]["executors"]
    return {name: executor["container"] for name, executor in executors.items()}


def pods(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]
    return dict(found["executors"])


def test_the_compiled_file_is_read_and_never_written() -> None:
    before = compiled_pipeline().read_bytes()
    spec_for(compiled_pipeline(), Placement(IMAGE, gpus=1))
    assert compiled_pipeline().read_bytes() == before


def test_only_placement_differs_from_the_compiled_pipeline() -> None:
    spec = spec_for(compiled_pipeline(), Placement(IMAGE, retries=0))
    ir, platform = yaml.safe_load_all(compiled_pipeline().read_text("utf-8"))
    for executor in ir["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = IMAGE
    assert spec["pipeline_spec"] == ir
    mounts = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name, pod in pods(spec).items():
        assert pod["podMetadata"] == {"labels": {"sssflow/run": "true"}}
        assert pod["securityContext"] == {"runAsNonRoot": True}
        assert pod.get("emptyDirMounts") == mounts.get(name, {}).get("emptyDirMounts")
    assert set(pods(spec)) == set(ir["deploymentSpec"]["executors"])


def test_a_full_submission_fits_the_definitions_of_kfp() -> None:
    placement = Placement(
        IMAGE,
        gpus=2,
        node_selector={"pool": "gpu"},
        tolerations=(TOLERATION,),
        secret="keys",  # noqa: S106 - the name of a Secret
        certificates=parse_certificates("hospital-ca"),
        environment={"AWS_ENDPOINT_URL": "http://store"},
        pull_secret="pull",  # noqa: S106
        cpu="500m",
        memory="8Gi",
        cached=False,
    )
    spec = spec_for(compiled_pipeline(), placement)
    json.dumps(spec)
    json_format.ParseDict(spec["pipeline_spec"], pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(spec["platform_spec"], pipeline_spec_pb2.PlatformSpec())
    for pod in pods(spec).values():
        config = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        json_format.ParseDict(pod, config)
        assert [s.secret_name for s in config.secret_as_env] == ["keys", "keys"]
        assert [m.config_map_name for m in config.config_map_as_volume] == ["hospital-ca"]
        assert config.security_context.run_as_non_root
    for container in containers(spec).values():
        read = pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec()
        json_format.ParseDict(container, read)
        assert read.image == IMAGE
        assert [(e.name, e.value) for e in read.env] == [
            ("AWS_CA_BUNDLE", "/etc/sssflow-s3-ca/ca.crt"),
            ("AWS_ENDPOINT_URL", "http://store"),
        ]


def test_temporary_keys_reach_the_tasks_with_their_token_and_lasting_ones_need_none() -> None:
    """Without its third part a temporary key is refused by every store."""
    spec = spec_for(compiled_pipeline(), Placement(IMAGE, secret="keys"))  # noqa: S106
    for pod in pods(spec).values():
        needed = {
            item["envVar"]: (item["secretKey"], not given["optional"])
            for given in pod["secretAsEnv"]
            for item in given["keyToEnv"]
        }
        assert needed == {
            "AWS_ACCESS_KEY_ID": ("AWS_ACCESS_KEY_ID", True),
            "AWS_SECRET_ACCESS_KEY": ("AWS_SECRET_ACCESS_KEY", True),
            "AWS_SESSION_TOKEN": ("AWS_SESSION_TOKEN", False),
        }


def test_a_private_ca_of_the_store_is_mounted_where_boto3_is_told_to_look() -> None:
    given = parse_certificates("hospital-ca/root.pem")
    spec = spec_for(compiled_pipeline(), Placement(IMAGE, certificates=given))
    for pod in pods(spec).values():
        (mount,) = pod["configMapAsVolume"]
        assert mount["configMapNameParameter"] == {"runtimeValue": {"constant": "hospital-ca"}}
        assert (mount["mountPath"], mount["optional"]) == ("/etc/sssflow-s3-ca", False)
    for container in containers(spec).values():
        assert {"name": "AWS_CA_BUNDLE", "value": "/etc/sssflow-s3-ca/root.pem"} in container["env"]


@pytest.mark.parametrize("text", ["kube-root-ca.crt", "Ca", "ca/", "ca/../x", "/etc/ca.pem"])
def test_a_config_map_that_cannot_name_a_volume_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Not a ConfigMap"):
        parse_certificates(text)


def test_trainings_get_the_gpus_and_what_computes_beside_them_one() -> None:
    spec = spec_for(compiled_pipeline(), Placement(IMAGE, gpus=4, gpu_type="example.com/gpu"))
    counts = {
        name: container.get("resources", {}).get("accelerator", {}).get("resourceCount", "0")
        for name, container in containers(spec).items()
    }
    assert counts == {
        "exec-adapt-sam2": "1",
        "exec-evaluate": "1",
        "exec-export-onnx": "0",
        "exec-generate-prompts": "1",
        "exec-ingest": "0",
        "exec-plan-shards": "0",
        "exec-sam2-inference": "1",
        "exec-train": "4",
        "exec-train-2": "4",
        "exec-train-3": "4",
    }
    kinds = {
        c["resources"]["accelerator"]["type"] for n, c in containers(spec).items() if "tr" in n
    }
    assert kinds == {"example.com/gpu"}


def test_a_task_whose_training_runs_on_machines_of_its_own_holds_no_gpu() -> None:
    chosen = {
        "node_selector": {"pool": "x"},
        "on_machines": dict.fromkeys(("train", "baseline"), NODES),
    }
    spec = spec_for(compiled_pipeline(), Placement(IMAGE, gpus=4, **chosen))
    found = containers(spec)
    assert found["exec-train"]["resources"]["accelerator"]["count"] == "4"  # the warm-up
    for name in ("exec-train-2", "exec-train-3"):
        assert "accelerator" not in found[name].get("resources", {})
        assert "nodeSelector" not in pods(spec)[name]


def test_the_task_of_sam_2_needs_no_gpu_where_triton_computes() -> None:
    spec = spec_for(compiled_pipeline(), Placement(IMAGE, gpus=1, sam_on_gpu=False))
    assert "resources" not in containers(spec)["exec-sam2-inference"]


def test_the_image_of_the_machines_must_be_named_by_its_digest_too() -> None:
    """Theirs is the code that trains, and the result is named by the code of the task."""
    tagged = NODES.model_copy(update={"image": "registry.example/sssflow:latest"})
    with pytest.raises(UsageError, match="by its digest"):
        Placement(IMAGE, on_machines={"train": tagged})


def test_a_secret_never_becomes_a_parameter_that_everybody_reads() -> None:
    told = ExperimentConfig.model_validate({"sam": {"triton": {"admin_key": "swordfish"}}})
    with pytest.raises(UsageError, match=r"sam\.triton\.admin_key") as caught:
        parameters_for(told, IMAGE, "s3://b/store")
    assert "swordfish" not in caught.value.describe()


def test_a_task_works_on_the_claim_that_its_machines_share() -> None:
    """Else its folder is in its own pod, and the training is refused when it is to begin."""
    spec = spec_for(compiled_pipeline(), Placement(IMAGE, on_machines={"train": NODES}))
    mounts = {name: pod["pvcMount"] for name, pod in pods(spec).items() if "pvcMount" in pod}
    assert list(mounts) == ["exec-train-3"]
    assert [(mount["constant"], mount["mountPath"]) for mount in mounts["exec-train-3"]] == [
        ("shared", "/mnt/shared")
    ]
    json_format.ParseDict(
        pods(spec)["exec-train-3"], kubernetes_executor_config_pb2.KubernetesExecutorConfig()
    )
    places = {
        name: entry["value"]
        for name, container in containers(spec).items()
        for entry in container.get("env", ())
        if entry["name"] == "TMPDIR"
    }
    assert places == {"exec-train-3": "/mnt/shared"}


def test_nodes_are_chosen_for_tasks_with_gpus_and_without_gpus_for_all() -> None:
    chosen = {"node_selector": {"pool": "x"}, "tolerations": (TOLERATION,)}
    with_gpus = pods(spec_for(compiled_pipeline(), Placement(IMAGE, gpus=1, **chosen)))
    assert "nodeSelector" not in with_gpus["exec-ingest"]
    assert with_gpus["exec-train"]["nodeSelector"] == {"labels": {"pool": "x"}}
    assert with_gpus["exec-train"]["tolerations"] == [TOLERATION]
    without = pods(spec_for(compiled_pipeline(), Placement(IMAGE, **chosen)))
    assert all(pod["nodeSelector"] == {"labels": {"pool": "x"}} for pod in without.values())


def test_every_pod_is_tried_again_and_graphs_are_not() -> None:
    ir = spec_for(compiled_pipeline(), Placement(IMAGE, retries=3))["pipeline_spec"]
    tasks = {**ir["root"]["dag"]["tasks"], **ir["components"]["comp-for-loop-1"]["dag"]["tasks"]}
    tries = {name: task.get("retryPolicy", {}).get("maxRetryCount") for name, task in tasks.items()}
    assert tries.pop("for-loop-1") is None
    assert set(tries.values()) == {3}


def test_without_a_cache_no_task_may_be_handed_on() -> None:
    spec = spec_for(compiled_pipeline(), Placement(IMAGE, cached=False))
    assert "enableCache" not in json.dumps(spec)


def test_the_size_of_the_request_does_not_depend_on_the_cases() -> None:
    assert len(json.dumps(spec_for(compiled_pipeline(), Placement(IMAGE, gpus=8)))) < 300_000


@pytest.mark.parametrize(
    "image", ["", "sssflow:latest", "sssflow", f"sssflow:1@sha256:{'a' * 63}", f"x@md5:{'a' * 64}"]
)
def test_an_image_without_its_digest_is_refused(image: str) -> None:
    with pytest.raises(UsageError, match="by its digest") as caught:
        Placement(image)
    assert caught.value.exit_code == 64


def test_an_image_by_digest_may_name_a_port_and_a_tag() -> None:
    assert require_digest(IMAGE) == IMAGE
    assert require_digest(f"a.b/c:1.0@sha256:{'0' * 64}")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("nvidia.com/gpu", {"key": "nvidia.com/gpu", "operator": "Exists"}),
        ("nvidia.com/gpu:NoSchedule", TOLERATION),
        (
            "team=a:NoExecute",
            {"key": "team", "operator": "Equal", "value": "a", "effect": "NoExecute"},
        ),
    ],
)
def test_a_toleration_is_written_like_a_taint(text: str, made: dict[str, str]) -> None:
    assert parse_toleration(text) == made


@pytest.mark.parametrize("text", ["", ":NoSchedule", "a:Never", "a b", "a=b=c"])
def test_what_is_no_toleration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Not a toleration"):
        parse_toleration(text)


def test_labels_and_quantities_are_checked() -> None:
    assert parse_label("a.b/c=d") == ("a.b/c", "d")
    for text in ("a", "=b", "a=b=c"):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            parse_label(text)
    with pytest.raises(UsageError, match="Not a quantity"):
        Placement(IMAGE, memory="8 GB")


def test_the_parameters_are_those_that_the_pipeline_knows() -> None:
    made = parameters_for(ExperimentConfig(), IMAGE, "s3://b/s", "s3://b/d", "0" * 64)
    ir = next(yaml.safe_load_all(compiled_pipeline().read_text("utf-8")))
    assert set(made) == set(ir["root"]["inputDefinitions"]["parameters"])
    assert json.loads(made["config_json"])["name"] == "experiment"


def test_the_key_of_a_run_is_that_of_all_that_decides_its_results() -> None:
    plain = (ExperimentConfig(), IMAGE, "s3://b/s", "s3://b/d", "0" * 64)
    keys = {parameters_for(*plain)["run_key"]}
    assert keys == {parameters_for(*plain)["run_key"]}
    others = (ExperimentConfig(name="x"), IMAGE[:-1] + "b", "s3://b/t", "s3://b/e", "1" * 64)
    for position, other in enumerate(others):
        keys.add(parameters_for(*plain[:position], other, *plain[position + 1 :])["run_key"])
    assert len(keys) == 6
