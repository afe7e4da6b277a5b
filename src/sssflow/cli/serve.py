"""`sssflow serve`: Triton from the model repository to the measured server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sssflow.cli.progress import working
from sssflow.cli.session import (
    DryRunOption,
    Plan,
    PrintConfigOption,
    SetOption,
    console,
    finish,
    need,
    quoted,
    show_config,
)
from sssflow.configuration import load_config
from sssflow.errors import UnavailableError

if TYPE_CHECKING:
    from sssflow.serving.client import TritonClient

app = typer.Typer(help="Serve SAM-2 and the student with Triton.", no_args_is_help=True)

ADMIN_KEY_VARIABLE = "SSSFLOW_TRITON_ADMIN_KEY"

RepositoryArgument = Annotated[
    Path, typer.Argument(metavar="REPOSITORY", help="Folder of `sssflow serve repository`.")
]
UrlArgument = Annotated[
    str, typer.Argument(metavar="URL", help="grpc://host:port or http://host:port of the server.")
]
StateOption = Annotated[
    Path, typer.Option("--state", help="Folder of the server's log, ports and process.")
]
_STATE = Path(".triton")


@app.callback()
def _group() -> None:
    """Serve SAM-2 and the student with Triton."""


@app.command()
def repository(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Argument(metavar="REPOSITORY", show_default=False, help="Folder to write to."),
    ] = None,
    sam2: Annotated[
        Path | None, typer.Option("--sam2", help="bundle.json of `sssflow export sam2`.")
    ] = None,
    segmenter: Annotated[
        Path | None, typer.Option("--segmenter", help="bundle.json of `sssflow export`.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Input size of SAM-2; its only one if left out.")
    ] = None,
    settings: SetOption = None,
    print_config: PrintConfigOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Write a Triton model repository from bundles."""
    from sssflow.serving.config import RepositoryConfig

    config = load_config(RepositoryConfig, None, settings or ())
    if print_config:
        show_config(config)
        return
    out = need(out, "REPOSITORY", "the folder to write to")
    reads = {"sam2": sam2} if sam2 is not None else {}
    reads |= {"segmenter": segmenter} if segmenter is not None else {}
    does = f"writes a Triton model repository, profile {config.profile}"
    if not Plan("serve repository", does, out, reads).start(context, dry_run=dry_run):
        return
    from sssflow.serving import repository as stage

    with working("repository"):
        made = stage.run(config, out, sam2=sam2, segmenter=segmenter, size_px=size)
    facts = {"models": ", ".join(model.name for model in made.models), "digest": made.digest}
    finish(out / "repository.json", facts, [quoted("sssflow", "serve", "up", out)])


@app.command()
def up(
    repository: RepositoryArgument,
    state: StateOption = _STATE,
    environment: Annotated[
        Path | None,
        typer.Option("--environment", help="Where the server is installed (made if missing)."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option("--http-port", help="0: a free one.")] = 0,
    grpc_port: Annotated[int, typer.Option("--grpc-port", help="0: a free one.")] = 0,
    metrics_port: Annotated[int, typer.Option("--metrics-port", help="0: a free one.")] = 0,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds that the models may take to load.")
    ] = 300.0,
) -> None:
    """Start a Triton server for CPU on this machine and wait until its models are ready."""
    from sssflow.serving import local_triton
    from sssflow.serving.environment import ensure, lock_file
    from sssflow.storage.digest import sha256_file

    if environment is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        environment = cache / "sssflow" / f"triton-{sha256_file(lock_file())[:12]}"
    options = local_triton.ServerOptions(
        host=host,
        ports=(http_port, grpc_port, metrics_port),
        admin_key=os.environ.get(ADMIN_KEY_VARIABLE),
    )
    with working("serve up"):
        local_triton.verified_models(repository)  # before minutes of installing
        installed = ensure(environment.absolute())
        server = local_triton.up(installed, repository, state, options=options, timeout_s=timeout_s)
    facts = {
        "gRPC": server.grpc_url,
        "HTTP": server.http_url,
        "metrics": f"http://{server.host}:{server.metrics_port}/metrics",
        "process": server.pid,
        "log": state / local_triton.LOG_FILE,
    }
    finish(
        state / local_triton.STATE_FILE,
        facts,
        [
            quoted("sssflow", "serve", "check", server.grpc_url, repository),
            quoted("sssflow", "serve", "down", "--state", state),
        ],
    )


@app.command()
def status(state: StateOption = _STATE) -> None:
    """Say whether a server runs here and which models are ready; exit 69 if not all are."""
    from sssflow.serving import local_triton

    server = local_triton.status(state)
    if server is None:
        words = ["sssflow", "serve", "up", "REPOSITORY"]
        words += [] if state == _STATE else ["--state", str(state)]
        raise UnavailableError(
            "No server runs here.",
            where=state,
            expected=f"{local_triton.STATE_FILE} of a server that runs",
            action=f"Start one: {quoted(*words)}",
        )
    ready = local_triton.ready_models(server)
    for name, is_ready in ready.items():
        console().print(f"{name}: {'ready' if is_ready else 'not ready'}", markup=False)
    console().print(f"{server.grpc_url} {server.http_url} process {server.pid}", markup=False)
    if not all(ready.values()):
        raise UnavailableError("Not every model is ready.", where=state)


@app.command()
def down(
    state: StateOption = _STATE,
    exit_timeout_s: Annotated[
        int, typer.Option("--exit-timeout", help="Seconds for requests under way.")
    ] = 30,
) -> None:
    """Stop the server: no new requests, time for those under way, then the end."""
    from sssflow.serving import local_triton

    stopped = local_triton.down(state, exit_timeout_s=exit_timeout_s)
    console().print("stopped" if stopped else "no server was running", markup=False)


@app.command()
def check(
    url: UrlArgument,
    repository: RepositoryArgument,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Largest difference that passes.")
    ] = 1e-4,
) -> None:
    """Compare what a server answers with ONNX Runtime here: exit 69 if away, 70 if different."""
    from sssflow.serving import check as stage

    with _client(url) as client:
        found = stage.run(client, repository, tolerance=tolerance)
    for item in found:
        line = f"{item.model} {item.tensor}: {item.max_abs_difference:.2e}"
        console().print(line, markup=False)
    console().print(f"{len(found)} tensors are equal within {tolerance:g}", markup=False)


@app.command()
def bench(
    url: UrlArgument,
    repository: RepositoryArgument,
    model: Annotated[str, typer.Option("--model", help="Which model.")] = "sam2_predict",
    requests: Annotated[int, typer.Option("--requests", min=1, help="Measured requests.")] = 100,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=64, help="Requests under way at once.")
    ] = 1,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="http://host:port of the server's metrics.")
    ] = None,
) -> None:
    """Measure latency and throughput of one model in a closed loop."""
    from sssflow.serving import bench as stage

    with _client(url, concurrency) as client:
        load = stage.run(client, repository, model, requests=requests, metrics_url=metrics)
    lines = {
        "p50": f"{load.p50_ms:.2f} ms",
        "p95": f"{load.p95_ms:.2f} ms",
        "p99": f"{load.p99_ms:.2f} ms",
        "throughput": f"{load.per_s:.2f} requests/s at concurrency {load.concurrency}",
        "batch size": "no metrics" if load.batch is None else f"{load.batch:.2f}",
        "queue to compute": "no metrics" if load.queue_ratio is None else f"{load.queue_ratio:.3f}",
    }
    for name, value in lines.items():
        console().print(f"{name:<17} {value}", markup=False)


@app.command()
def publish(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Repository with new models.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Repository that the server reads.")
    ],
    url: UrlArgument,
) -> None:
    """Bring the models of SOURCE live in TARGET; take them back if one fails."""
    from sssflow.serving import publish as stage

    with _client(url) as client, working("publish"):
        changes = stage.run(source, target, client)
    for change in changes:
        before = change.former_version if change.former_version is not None else "none"
        line = f"{change.model}: version {change.version} is live (before: {before})"
        console().print(line, markup=False)
    if not changes:
        console().print("every model was live already", markup=False)


@app.command()
def sync(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Repository: a folder, file:// or s3://.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to copy it to.")],
    digest: Annotated[
        str, typer.Option("--digest", help="What `serve repository` printed; any if empty.")
    ] = "",
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Only this model; may be repeated.")
    ] = None,
) -> None:
    """Copy a model repository and verify every file (what the chart's init container does)."""
    from sssflow.serving import sync as stage

    with working("sync"):
        kept = stage.run(source, target, models=model or (), digest=digest or None)
    finish(target / "repository.json", {"models": ", ".join(m.name for m in kept.models)})


def _client(url: str, concurrency: int = 2) -> TritonClient:
    from sssflow.configuration import parse_config
    from sssflow.serving.client import TritonClient
    from sssflow.serving.config import ClientConfig
    from sssflow.serving.local_triton import ADMIN_HEADER

    key = os.environ.get(ADMIN_KEY_VARIABLE)
    settings = {
        "url": url,
        "concurrency": concurrency,
        "admin_header": ADMIN_HEADER if key else None,
        "admin_key": key,
    }
    return TritonClient(parse_config(ClientConfig, settings, source="URL"))
