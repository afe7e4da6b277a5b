"""What a failed call to a KFP server means: try again, or ask the user."""

from __future__ import annotations

import contextlib
import json

from sssflow.errors import SssflowError, UnavailableError, UsageError

_UNTRUSTED = (
    "CERTIFICATE_VERIFY_FAILED",
    "NO_CERTIFICATE_OR_CRL_FOUND",
    "No such file or directory",
    "Is a directory",
)
"""How a failed TLS connection says that the certificates, or the file of --ca-file, are wrong."""
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


def no_answer(address: str, what: str, error: Exception) -> UnavailableError:
    """No connection, or none that held."""
    return UnavailableError(
        f"The KFP server gave no answer about {what}.",
        where=address,
        found=f"{type(error).__name__}: {error}"[:300],
        action="Check the address and the network (`sssflow pipeline doctor --host ...`), then "
        "run the same command again.",
    )


def no_tls(address: str, found: str) -> SssflowError:
    """TLS failed: over the certificate, over a server that does not speak it, or on the way."""
    found = " ".join(found.split())[:300]
    if any(text in found for text in _UNTRUSTED):
        return UsageError(
            "The server's certificate is not trusted.",
            where=address,
            found=found,
            action="Name a file with the certificates of its authority with --ca-file.",
        )
    if any(text in found for text in _NO_TLS):
        return UsageError(
            "The server does not speak HTTPS.",
            where=address,
            found=found,
            action="Write http:// in --host, or name the port that speaks HTTPS.",
        )
    return UnavailableError(
        "The secure connection to the KFP server failed.",
        where=address,
        found=found,
        action="Check the network, then run the same command again.",
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
