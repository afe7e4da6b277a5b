"""`sssflow pipeline submit`, `watch`, `resume`, `cancel`: runs on a KFP server."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sssflow
from sssflow.cli.cluster_doctor import doctor
from sssflow.cli.cluster_fetch import fetch, figures_of
from sssflow.cli.cluster_options import (
    Account,
    Cached,
    CaFile,
    Context,
    Cpu,
    Data,
    DataDigest,
    Endpoint,
    Gpus,
    GpuType,
    Host,
    Image,
    Kubeconfig,
    Memory,
    Name,
    Namespace,
    NodeSelector,
    Profile,
    PullSecret,
    Region,
    Retries,
    RunId,
    S3Ca,
    Secret,
    StoreOption,
    TokenFile,
    Tolerations,
    Triton,
    open_api,
    open_kube,
)
from sssflow.cli.progress import working
from sssflow.cli.session import (
    ConfigOption,
    DryRunOption,
    PrintConfigOption,
    SetOption,
    console,
    quoted,
    read_experiment,
    show_config,
)
from sssflow.errors import UsageError

if TYPE_CHECKING:
    from sssflow.experiment import ExperimentConfig
    from sssflow.pipeline.config import NodesConfig
    from sssflow.pipeline.kfp_api import KfpApi
    from sssflow.pipeline.kube import Kube
    from sssflow.pipeline.submission import Placement


def add_to(app: typer.Typer) -> None:
    """Give the verbs of this module to `sssflow pipeline`."""
    for verb in (submit, watch, resume, cancel, fetch):
        app.command()(verb)
    app.command("doctor")(doctor)


def submit(
    host: Host = "",
    data: Data = "",
    data_digest: DataDigest = "",
    store: StoreOption = "",
    image: Image = "",
    gpus: Gpus = 0,
    gpu_type: GpuType = "nvidia.com/gpu",
    node_selector: NodeSelector = None,
    toleration: Tolerations = None,
    cpu: Cpu = "",
    memory: Memory = "",
    triton: Triton = "",
    secret: Secret = "s3-credentials",  # noqa: S107 - the name of a Secret
    s3_endpoint: Endpoint = "",
    s3_region: Region = "us-east-1",
    s3_ca: S3Ca = "",
    service_account: Account = "",
    pull_secret: PullSecret = "",
    retries: Retries = 2,
    cache: Cached = True,
    experiment_name: Name = "sssflow",
    profile: Profile = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Start the compiled pipeline on a KFP server; nothing of it is edited or built."""
    experiment = _experiment(config, settings, triton, gpus)
    if print_config:
        show_config(experiment)
        return
    from sssflow.pipeline.submission import (
        Placement,
        parse_certificates,
        parse_label,
        parse_toleration,
    )

    placement = Placement(
        image=image,
        gpus=gpus,
        gpu_type=gpu_type,
        on_machines=_on_machines(experiment),
        sam_on_gpu=not triton,
        node_selector=dict(map(parse_label, node_selector or ())),
        tolerations=tuple(map(parse_toleration, toleration or ())),
        secret=secret,
        certificates=parse_certificates(s3_ca),
        environment=_environment(s3_endpoint, s3_region),
        pull_secret=pull_secret,
        cpu=cpu,
        memory=memory,
        retries=retries,
        cached=cache,
    )
    parameters = _parameters(experiment, image, data, data_digest, store)
    _tell_plan(placement, parameters, host, s3_endpoint)
    if dry_run:
        console().print("  dry run: nothing was sent")
        return
    from sssflow.pipeline.ir import compiled_pipeline
    from sssflow.pipeline.submission import spec_for

    api = open_api(host, profile, token_file, ca_file)
    run_id = api.create(
        f"{experiment.name}-{secrets.token_hex(4)}",
        spec_for(compiled_pipeline(), placement),
        parameters,
        experiment_id=api.experiment(experiment_name),
        description=f"sssflow {sssflow.__version__}, configuration {experiment.digest()}",
        service_account=service_account,
    )
    _tell_run("submitted", run_id, api)


def watch(
    run_id: RunId,
    host: Host = "",
    namespace: Namespace = "",
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    profile: Profile = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    every_s: Annotated[float, typer.Option("--every-s", min=0.1, help="Between two looks.")] = 5.0,
) -> None:
    """Follow a run to its end; the exit code is the run's. Ctrl-C stops the watching alone."""
    from sssflow.pipeline.ir import compiled_pipeline
    from sssflow.pipeline.watching import Watcher, task_names

    api = open_api(host, profile, token_file, ca_file)
    try:
        kube: Kube | None = open_kube(namespace, context, kubeconfig)
    except UsageError as error:
        kube = None
        console().print(f"  without a look at pods: {error.what}", markup=False)
    with working("watch") as shown:
        names = task_names(compiled_pipeline())
        run = Watcher(api, shown.say, kube, names, every_s=every_s).follow(run_id)
    terminal = console()
    terminal.print(f"[bold]done[/bold]: run {run.run_id}, {_page(api, run.run_id)}")
    for name, value in figures_of(run).items():
        terminal.print(f"  {name}  {value}", markup=False)
    then = quoted("sssflow", "pipeline", "fetch", run_id, "OUT", "--host", api.address.host)
    terminal.print(f"next: {then}", markup=False)


def resume(
    run_id: RunId,
    host: Host = "",
    profile: Profile = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Start a run that ended early once more: what is finished is kept, training continues."""
    api = open_api(host, profile, token_file, ca_file)
    run = api.run(run_id)
    if not run.ended:
        raise UsageError(
            "The run is still going on.",
            where=f"run {run_id}",
            found=run.state.lower(),
            action=f"Watch it, or stop it first: sssflow pipeline cancel {run_id} --host {host}",
        )
    name = f"{run.name.partition('-again-')[0]}-again-{secrets.token_hex(4)}"
    _tell_run(f"resumed {run.name} as {name}:", api.create_again(run, name), api)


def cancel(
    run_id: RunId,
    host: Host = "",
    profile: Profile = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Stop a run; finished tasks and checkpoints stay in the store."""
    api = open_api(host, profile, token_file, ca_file)
    run = api.run(run_id)
    if run.ended:
        console().print(f"run {run_id} has ended already: {run.state.lower()}", markup=False)
        return
    api.terminate(run_id)
    console().print(f"[bold]cancelling[/bold]: run {run_id}")
    again = quoted("sssflow", "pipeline", "resume", run_id, "--host", host)
    console().print(f"next: {again}", markup=False)


def _on_machines(experiment: ExperimentConfig) -> dict[str, NodesConfig]:
    """The trainings that `pipeline.nodes` takes out of their tasks' pods, and to where."""
    from sssflow.experiment import TRAINING_SECTIONS

    machines = experiment.pipeline.nodes
    if machines is None:
        return {}
    return {s: machines for s in TRAINING_SECTIONS if experiment.training(s).processes > 1}


def _experiment(
    config: Path | None, settings: list[str] | None, triton: str, gpus: int
) -> ExperimentConfig:
    from sssflow.experiment import TRAINING_SECTIONS

    asked = ["sam.backend=triton", f"sam.triton.url={triton}"] if triton else []
    lines = [*(settings or ()), *asked]
    experiment = read_experiment(config, lines)
    if gpus > 1 and experiment.pipeline.nodes is None:
        # One process for each GPU, as `sssflow train --gpus`; a --set may say otherwise. Several
        # machines share the processes that the experiment names.
        shared = [f"{section}.processes={gpus}" for section in TRAINING_SECTIONS]
        experiment = read_experiment(config, [*shared, *lines])
    bundle = experiment.sam.onnx.bundle or ""
    if experiment.sam.backend == "triton" and not bundle.startswith("s3://"):
        raise UsageError(
            "The tasks must be able to read what Triton's graphs are.",
            where="sam.onnx.bundle",
            expected="s3://BUCKET/PREFIX with the bundle that `sssflow export sam2` wrote",
            found=bundle or "nothing",
            action="Copy it with `sssflow data push BUNDLE s3://...` and add "
            "`--set sam.onnx.bundle=s3://...`.",
        )
    return experiment


def _environment(endpoint: str, region: str) -> dict[str, str]:
    """Variables of the pods for boto3's usual chain."""
    made = {"AWS_DEFAULT_REGION": region} if region else {}
    return made | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})


def _parameters(
    experiment: ExperimentConfig, image: str, data: str, data_digest: str, store: str
) -> dict[str, str]:
    """Parameters of the run, the digest of the scans among them."""
    from sssflow.pipeline.store import source_fingerprint
    from sssflow.pipeline.submission import parameters_for
    from sssflow.storage.s3_calls import S3Address

    if not data:
        experiment.require_phantoms()
    if not store and data:
        store = f"s3://{S3Address.parse(data).bucket}/sssflow"
    for option, address in (("--data", data), ("--store", store or "nothing")):
        if address and not address.startswith("s3://"):
            raise UsageError(
                "Tasks of a cluster reach an object store alone.",
                where=option,
                expected="s3://BUCKET/PREFIX",
                found=address,
                action="Copy scans there with `sssflow data push FOLDER s3://...`.",
            )
        if address:
            S3Address.parse(address)
    digest = data_digest or (source_fingerprint(data) if data else "")
    return parameters_for(experiment, image, store, data, digest)


def _tell_plan(placement: Placement, parameters: dict[str, str], host: str, endpoint: str) -> None:
    terminal = console()
    terminal.print("[bold]sssflow pipeline submit[/bold]: starts the compiled pipeline")
    facts = {
        "server": host,
        "image": placement.image,
        "scans": parameters["source"] or "phantoms of the configuration",
        "digest": parameters["source_digest"] or "of the configuration",
        "store": parameters["store_uri"],
        "endpoint": endpoint or "Amazon's (another one: --s3-endpoint)",
        **({"S3 CA": f"{ca.config_map}/{ca.key}"} if (ca := placement.certificates) else {}),
        "GPUs": f"{placement.gpus} x {placement.gpu_type}" if placement.gpus else "none",
    }
    for name, value in facts.items():
        terminal.print(f"  {name:<9} {value}", markup=False)


def _tell_run(what: str, run_id: str, api: KfpApi) -> None:
    terminal = console()
    terminal.print(f"[bold]{what}[/bold] run {run_id}")
    terminal.print(f"  page      {_page(api, run_id)}", markup=False)
    then = quoted("sssflow", "pipeline", "watch", run_id, "--host", api.address.host)
    terminal.print(f"next: {then}", markup=False)


def _page(api: KfpApi, run_id: str) -> str:
    return f"{api.address.host.rstrip('/')}/#/runs/details/{run_id}"
