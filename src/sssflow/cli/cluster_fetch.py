"""`sssflow pipeline fetch`: the results of a run on a KFP server, in a folder of this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sssflow.cli.cluster_options import CaFile, Host, Profile, RunId, TokenFile, open_api
from sssflow.cli.progress import working
from sssflow.cli.session import DryRunOption, Plan, finish, quoted
from sssflow.errors import SssflowError, UsageError

if TYPE_CHECKING:
    from sssflow.pipeline.kfp_api import RunState


def fetch(
    context: typer.Context,
    run_id: RunId,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write to.")],
    host: Host = "",
    profile: Profile = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    dry_run: DryRunOption = False,
) -> None:
    """Bring report, figures, models and curves of a finished run to OUT, every file verified."""
    from sssflow.cli.pipeline import figures
    from sssflow.pipeline.results import collect, noted_outputs, require_own_folder
    from sssflow.pipeline.store import Store, program_digest

    run = open_api(host, profile, token_file, ca_file).run(run_id)
    if run.state != "SUCCEEDED":
        raise UsageError(
            "Only a run that succeeded has results.",
            where=f"run {run_id}",
            found=run.state.lower(),
            action=f"Watch it, or resume it: sssflow pipeline resume {run_id} --host {host}",
        )
    require_own_folder(out)
    store_uri = run.parameters.get("store_uri", "")
    outputs = noted_outputs(store_uri, run.parameters.get("run_key", ""))
    plan = Plan("pipeline fetch", f"brings the results of {run.name} from {store_uri}", out)
    if not plan.start(context, dry_run=dry_run):
        return
    with working("fetch"), contextlib.closing(Store(store_uri, program=program_digest())) as store:
        gathered = collect(outputs, out, store=store)
    then = [
        f"open {gathered.report} in a browser",
        quoted("tensorboard", "--logdir", out / "tensorboard"),
    ]
    finish(gathered.report, figures(gathered.summary), then)


def figures_of(run: RunState) -> dict[str, object]:
    """Figures of a run that succeeded; none if this machine does not reach its store."""
    from sssflow.cli.pipeline import figures
    from sssflow.contracts.evaluation import EvaluationSummary
    from sssflow.pipeline.results import noted_outputs
    from sssflow.pipeline.store import Store, program_digest

    store_uri = run.parameters.get("store_uri", "")
    with contextlib.suppress(SssflowError):
        outputs = noted_outputs(store_uri, run.parameters.get("run_key", ""))
        with contextlib.closing(Store(store_uri, program=program_digest())) as store:
            summary, _ = store.follow(EvaluationSummary, outputs["evaluation"], lambda _: ())
        return figures(summary)
    return {}
