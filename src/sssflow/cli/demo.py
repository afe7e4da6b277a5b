"""`sssflow demo`: the whole flow on phantom hearts."""

from __future__ import annotations

import typer

from sssflow.errors import UnavailableError


def demo(context: typer.Context) -> None:
    """Run the whole flow on phantom hearts."""
    raise UnavailableError("The demo is not built yet.", where=context.command_path)
