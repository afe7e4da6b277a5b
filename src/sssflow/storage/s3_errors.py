"""What a failed S3 call means: try again, ask the user, or refuse the data."""

from __future__ import annotations

from typing import Any

from botocore import exceptions as boto
from urllib3.exceptions import HTTPError

from sssflow.errors import DataError, SssflowError, UnavailableError, UsageError

_PASSING_CODES = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "BadDigest",
    "InvalidDigest",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "IncompleteBody",
    "OperationAborted",
}
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_UNKNOWN_KEY_CODES = {"InvalidAccessKeyId", "XAdminUserNotFound"}
"""No such access key. Not all stores say so with status 403: versitygw says 404."""
_UNTRUSTED = (
    "CERTIFICATE_VERIFY_FAILED",
    "NO_CERTIFICATE_OR_CRL_FOUND",
    "No such file or directory",
    "Is a directory",
)
"""How a failed TLS connection says that the certificates, or the file that AWS_CA_BUNDLE names, are
at fault: another try changes nothing."""
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.ProfileNotFound,
)
_SETTINGS = (
    boto.ParamValidationError,
    boto.EndpointProviderError,
    boto.ConfigParseError,
    boto.InvalidRegionError,
)
"""The call was not made: a name of the bucket, an endpoint or a region is none."""
_PASSING_ERRORS = (
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    boto.ResponseStreamingError,
    # A cut or garbled answer cannot be parsed; the store may answer better the next time.
    boto.BotoCoreError,
    HTTPError,
    ConnectionError,
    TimeoutError,
)


class CutBodyError(ConnectionError):
    """An answer ended before its length, or came for another range."""


def status_of(error: BaseException) -> int:
    """HTTP status of an answer with an error; 0 if there was no answer."""
    if not isinstance(error, boto.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: BaseException) -> str:
    """The store's name for the error; empty if there was no answer."""
    if not isinstance(error, boto.ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_absent(error: BaseException) -> bool:
    """Whether the store says that the object (not its bucket) does not exist."""
    return status_of(error) == 404 and code_of(error) not in ("NoSuchBucket", *_UNKNOWN_KEY_CODES)


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed when it is made again."""
    if isinstance(error, boto.ClientError):
        status = status_of(error)
        return status >= 500 or status in (408, 429) or code_of(error) in _PASSING_CODES
    if isinstance(error, (*_NO_CREDENTIALS, *_SETTINGS)) or _is_untrusted(error):
        return False
    return isinstance(error, _PASSING_ERRORS)


def _is_untrusted(error: BaseException) -> bool:
    return isinstance(error, boto.SSLError) and any(text in str(error) for text in _UNTRUSTED)


def explained(error: BaseException, address: str, verb: str) -> SssflowError:
    """Our error for a call that failed for good. No credential is ever part of it."""
    if isinstance(error, _NO_CREDENTIALS):
        return UsageError(
            "There are no usable credentials for the object store.",
            where=address,
            found=type(error).__name__,
            action="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role.",
        )
    if isinstance(error, boto.ClientError):
        return _explained_answer(error, address, verb)
    if isinstance(error, _SETTINGS):
        return unusable(error, address)
    if _is_untrusted(error):
        return UsageError(
            "The certificate of the object store is not trusted.",
            where=address,
            found=str(error)[:300],
            action="Name a file with its CA's certificates in AWS_CA_BUNDLE; for pods give "
            "--s3-ca to `sssflow pipeline submit`, modelRepository.s3.ca to the chart sam2-triton.",
        )
    return UnavailableError(
        f"The object store could not be used to {verb} an object.",
        where=address,
        found=f"{type(error).__name__}: {error}"[:300],
        action="Check the endpoint and the network, then run the same command again.",
    )


def unusable(error: BaseException, where: str) -> UsageError:
    """Our error for settings with which no call can be made."""
    return UsageError(
        "No object store can be reached with these settings.",
        where=where,
        found=" ".join(str(error).split())[:300],
        action="Correct the address, AWS_ENDPOINT_URL (http://HOST:PORT or https://HOST), "
        "AWS_PROFILE, AWS_DEFAULT_REGION, or the file that AWS_CONFIG_FILE names.",
    )


def _explained_answer(error: Any, address: str, verb: str) -> SssflowError:
    status, code = status_of(error), code_of(error)
    if code == "NoSuchBucket":
        return UsageError("The bucket does not exist.", where=address, action="Create it first.")
    if code in _EXPIRED_CODES:
        return UnavailableError(
            "The credentials have expired.",
            where=address,
            found=code,
            action="Renew them, then run the same command again.",
        )
    if status in (401, 403) or code in _UNKNOWN_KEY_CODES:
        return UsageError(
            f"The object store refuses to {verb} this object with these credentials.",
            where=address,
            found=code or f"HTTP {status}",
            action="Check the keys and the bucket's policy.",
        )
    if status == 404:
        return DataError(
            "The object does not exist.",
            where=address,
            found=code,
            action="Check the address, or run the stage that writes it.",
        )
    if status == 412:
        return DataError(
            "The object was replaced while it was read.",
            where=address,
            action="Run the stage again; nothing may write to a published result.",
        )
    kind = UnavailableError if may_pass(error) else UsageError
    return kind(
        f"The object store failed to {verb} an object.",
        where=address,
        found=f"HTTP {status} {code}",
        action="Run the same command again later."
        if kind is UnavailableError
        else "Check the address and the settings of the store.",
    )
