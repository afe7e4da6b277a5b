"""`sssflow pipeline`: compile the KFP pipeline, run it on this machine."""

from __future__ import annotations

import typer

app = typer.Typer(help="The whole flow as a Kubeflow pipeline.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The whole flow as a Kubeflow pipeline."""
