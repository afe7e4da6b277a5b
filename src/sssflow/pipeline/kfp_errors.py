"""What a failed call to a KFP server means: try again, or ask the user."""

from __future__ import annotations

import contextlib
import json

from sssflow.errors import SssflowError, UnavailableError, UsageError


def no_answer(address: str, what: str, error: Exception) -> UnavailableError:
    """No connection, or none that held."""
    return UnavailableError(
        f"The KFP server gave no answer about {what}.",
        where=address,
        found=f"{type(error).__name__}: {error}"[:300],
        action="Check the address and the network (`sssflow pipeline doctor --host ...`), then "
        "run the same command again.",
    )


def strange_answer(address: str, found: str) -> UsageError:
    """Something answers, and it is no KFP server."""
    return UsageError(
        "The answer is not one of a KFP server.",
        where=address,
        found=found[:200],
        action="Check --host; a login page in front of the server needs --token-file.",
    )


def refusal(address: str, what: str, status: int, body: str) -> SssflowError:
    """The server's answer with an error: UnavailableError where it may pass, else UsageError."""
    with contextlib.suppress(ValueError):
        told = json.loads(body)
        body = str(told.get("message") or told.get("error") or body)
    found = f"HTTP {status}: {body[:500]}".rstrip(": ")
    if status >= 500 or status in (408, 429):
        return UnavailableError(
            f"The KFP server failed over {what}.",
            where=address,
            found=found,
            action="Run the same command again later; the log of ml-pipeline says more.",
        )
    actions = {
        401: "Give a token that the server accepts, with --token-file.",
        403: "Ask for the rights in this namespace, or name your profile with --profile.",
        404: "Check the ID and --host.",
        409: "Something of this name is there already; choose another name.",
    }
    return UsageError(
        f"The KFP server refuses {what}.",
        where=address,
        found=found,
        action=actions.get(status, "Correct what the server complains of."),
    )
