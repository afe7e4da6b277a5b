"""`sssflow pipeline doctor`: what a submission needs of a cluster, all faults at once."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from sssflow.cli.cluster_options import (
    Account,
    CaFile,
    Context,
    Gpus,
    GpuType,
    Host,
    Kubeconfig,
    Namespace,
    NodeSelector,
    Profile,
    S3Ca,
    Secret,
    TokenFile,
    Tolerations,
    Triton,
    open_api,
    open_kube,
)
from sssflow.cli.session import console
from sssflow.errors import SssflowError

EXIT_UNAVAILABLE = 69


def doctor(
    host: Host = "",
    store: Annotated[str, typer.Option("--store", help="Store that is tried from here.")] = "",
    namespace: Namespace = "",
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    secret: Secret = "s3-credentials",  # noqa: S107 - the name of a Secret
    s3_ca: S3Ca = "",
    service_account: Account = "pipeline-runner",
    gpus: Gpus = 0,
    gpu_type: GpuType = "nvidia.com/gpu",
    node_selector: NodeSelector = None,
    toleration: Tolerations = None,
    triton: Triton = "",
    machines: Annotated[
        bool, typer.Option("--machines", help="Trainings run on several machines (pipeline.nodes).")
    ] = False,
    claims: Annotated[
        bool, typer.Option("--claims", help="Checkpoints go to volumes, not to the store.")
    ] = False,
    profile: Profile = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Look at all that a submission needs; every fault with its remedy, exit 69 if there is one."""
    from sssflow.pipeline.preflight import Needs, examine
    from sssflow.pipeline.submission import parse_certificates, parse_label, parse_toleration

    needs = Needs(
        store=store,
        secret=secret,
        certificates=parse_certificates(s3_ca),
        account=service_account,
        gpus=gpus,
        gpu_type=gpu_type,
        node_selector=dict(map(parse_label, node_selector or ())),
        tolerations=tuple(map(parse_toleration, toleration or ())),
        triton=triton,
        machines=machines,
        claims=claims,
    )
    checks = examine(
        needs,
        lambda: open_api(host, profile, token_file, ca_file),
        lambda: open_kube(namespace, context, kubeconfig),
        _triton_answers,
    )
    table = Table("what", "state", "detail", box=None, pad_edge=False)
    for check in checks:
        table.add_row(check.subject, check.state, check.detail)
    console().print(table)
    for check in checks:
        if check.remedy and check.state != "ok":
            console().print(f"{check.subject}: {check.remedy}", markup=False)
    missing = [check.subject for check in checks if check.state == "missing"]
    if missing:
        console().print(f"missing: {', '.join(missing)}", markup=False)
        raise typer.Exit(EXIT_UNAVAILABLE)
    console().print("all there; next: sssflow pipeline submit", markup=False)


def _triton_answers(address: str) -> bool:
    from sssflow.serving.client import TritonClient
    from sssflow.serving.config import ClientConfig

    try:
        with TritonClient(ClientConfig(url=address, patience_s=0)) as client:
            return client.ready("sam2_predict")
    except (SssflowError, ValueError):
        return False
