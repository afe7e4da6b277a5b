"""A server on this machine is asked directly: the proxy that `http_proxy` names cannot reach it."""

from __future__ import annotations

import http.client
import urllib.request

_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


def is_this_machine(host: str) -> bool:
    """Whether a host, an IPv6 one with or without brackets, is this machine by its loopback."""
    return host.removeprefix("[").removesuffix("]") in _HOSTS


def fetch(url: str, *, direct: bool, timeout_s: float) -> bytes:
    """The body of an HTTP address's answer, which must be of status 2xx.

    Args:
        url: What is asked for.
        direct: Past every proxy; else as the environment says.
        timeout_s: For each wait on the connection.

    Raises:
        OSError: No such answer: nobody listens, another status, too slow, no address at all, or
            somebody answers who does not speak HTTP, as a gRPC port does.
    """
    proxies = [urllib.request.ProxyHandler({})] if direct else []
    try:
        with urllib.request.build_opener(*proxies).open(url, timeout=timeout_s) as answer:
            return bytes(answer.read())
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
