"""Options that the verbs for runs on a KFP server share, and what they open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sssflow.pipeline.kfp_api import KfpApi
    from sssflow.pipeline.kube import Kube

Host = Annotated[
    str,
    typer.Option(
        "--host",
        envvar="KF_PIPELINES_ENDPOINT",
        help="KFP server, for example http://127.0.0.1:8888.",
    ),
]
Namespace = Annotated[
    str,
    typer.Option("--namespace", "-n", help="Where runs' pods are; default: of the kubeconfig."),
]
Profile = Annotated[
    str, typer.Option("--profile", help="Profile on a server with several users; default: none.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[
    str | None,
    typer.Option("--kubeconfig", envvar="KUBECONFIG", help="How the cluster is reached."),
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with a bearer token for the server.")
]
CaFile = Annotated[
    Path | None, typer.Option("--ca-file", help="Certificates that the server is checked against.")
]
RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="As `submit` told it.")]
Data = Annotated[
    str, typer.Option("--data", help="s3:// scans; without it the phantoms of --config.")
]
DataDigest = Annotated[
    str,
    typer.Option("--data-digest", help="Of the scans, where this machine cannot reach the store."),
]
StoreOption = Annotated[
    str, typer.Option("--store", help="Results go here; default: sssflow/ in the bucket of --data.")
]
Image = Annotated[
    str, typer.Option("--image", help="Image of every task: NAME@sha256:DIGEST. Tags are refused.")
]
Gpus = Annotated[int, typer.Option("--gpus", min=0, help="GPUs of a training; others get one.")]
GpuType = Annotated[str, typer.Option("--gpu-type", help="Name of the GPU resource.")]
NodeSelector = Annotated[
    list[str] | None,
    typer.Option("--node-selector", metavar="KEY=VALUE", help="Label of GPU nodes; repeatable."),
]
Tolerations = Annotated[
    list[str] | None,
    typer.Option(
        "--toleration", metavar="KEY[=VALUE][:EFFECT]", help="Taint that is borne; repeatable."
    ),
]
Secret = Annotated[
    str, typer.Option("--secret", help="Secret with the store's keys; empty: the pods' role.")
]
Triton = Annotated[
    str,
    typer.Option(
        "--triton", help="SAM-2 on this Triton, for example grpc://sam2-sam2-triton:8001."
    ),
]
Account = Annotated[
    str, typer.Option("--service-account", help="Of the tasks; default: the server's choice.")
]
Endpoint = Annotated[
    str, typer.Option("--s3-endpoint", help="Of the store as pods reach it; empty: Amazon's.")
]
S3Ca = Annotated[
    str,
    typer.Option(
        "--s3-ca",
        metavar="CONFIGMAP[/KEY]",
        help="Certificates that pods check the store against, for a private CA; KEY: ca.crt.",
    ),
]
Region = Annotated[str, typer.Option("--s3-region", help="Region of the store.")]
Cpu = Annotated[str, typer.Option("--cpu", help="CPUs that each computing task asks for.")]
Memory = Annotated[str, typer.Option("--memory", help="Memory of each computing task, as 16Gi.")]
PullSecret = Annotated[str, typer.Option("--pull-secret", help="Secret for pulling the image.")]
Retries = Annotated[
    int, typer.Option("--retries", min=0, max=20, help="Further tries of a failed or killed task.")
]
Cached = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Let KFP hand on results of earlier runs.")
]
Name = Annotated[str, typer.Option("--experiment", help="KFP experiment that the run belongs to.")]


def open_api(host: str, profile: str, token_file: Path | None, ca_file: Path | None) -> KfpApi:
    """The KFP server that the options name."""
    from sssflow.pipeline.kfp_api import KfpAddress, KfpApi

    return KfpApi(KfpAddress(host, profile, token_file, ca_file))


def open_kube(namespace: str, context: str | None, kubeconfig: str | None) -> Kube:
    """The namespace that the options name."""
    from sssflow.pipeline.kube import Kube

    return Kube(namespace, context=context, kubeconfig=kubeconfig)
