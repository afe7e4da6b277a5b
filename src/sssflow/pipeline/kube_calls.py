"""One call to the Kubernetes API: with a deadline, and once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TIMEOUT_S = (5, 20)
"""For the connection, and for the answer."""


class NoAnswerError(Exception):
    """A call that failed.

    Attributes:
        status: Of the answer; 0 if there was none.
        found: What came instead, shortened.
    """

    def __init__(self, status: int, found: str) -> None:
        super().__init__(found)
        self.status = status
        self.found = found


def answering_once(api: Any) -> Any:
    """An `ApiClient` of the package `kubernetes` that makes no attempts of its own.

    Otherwise urllib3 tries three times, each with its own timeout.
    """
    from kubernetes.client.rest import RESTClientObject

    api.configuration.retries = False
    api.rest_client = RESTClientObject(api.configuration)
    return api


def call(
    api: Any,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: Any = None,
) -> str:
    """The text of the answer.

    Args:
        api: See `answering_once`.
        method: GET, POST, PATCH (a merge patch) or DELETE.
        path: Of the object.
        query: Parameters.
        body: Object that is sent, as plain data.

    Raises:
        NoAnswerError: The answer is an error, or none came in time.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    sent = "application/merge-patch+json" if method == "PATCH" else "application/json"
    try:
        answer = api.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json, */*", "Content-Type": sent},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=_TIMEOUT_S,
        )
        return str(answer.data.decode(errors="replace"))
    except ApiException as error:
        # Without a body the reason tells, for example, which certificate is not trusted.
        told = error.body or error.reason or ""
        text = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
        raise NoAnswerError(int(error.status or 0), " ".join(text.split())[:500]) from None
    except ValueError:  # its text would tell the token
        said = "a credential that HTTP cannot carry, such as a token of more than one line"
        raise NoAnswerError(0, said) from None
    except (HTTPError, OSError) as error:
        raise NoAnswerError(0, f"{type(error).__name__}: {error}"[:300]) from None
