"""A server on this machine is asked directly: the proxy that `http_proxy` names cannot reach it."""

from __future__ import annotations

import urllib.request

_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


def is_this_machine(host: str) -> bool:
    """Whether a host, an IPv6 one with or without brackets, is this machine by its loopback."""
    return host.removeprefix("[").removesuffix("]") in _HOSTS


def opener(*, direct: bool) -> urllib.request.OpenerDirector:
    """What opens HTTP addresses: past every proxy, or as the environment says."""
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if direct else []))
