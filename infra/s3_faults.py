"""Which failures of an S3 request are worth another try."""

import urllib3.exceptions
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError

# botocore lets its parser's and urllib3's own errors through when an answer is cut off.
FAILURES = (BotoCoreError, ClientError, ResponseParserError, urllib3.exceptions.HTTPError)

_TRANSIENT = (
    BotoConnectionError,
    CredentialRetrievalError,  # the instance's own credentials, when they are due for renewal
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
)
_TRANSIENT_STATUSES = frozenset({409, 412, 429})
_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "NoSuchUpload",  # an upload in parts was completed, and the answer got lost
        "RequestTimeout",
        "SlowDown",
        "ThrottlingException",
        "XAmzContentSHA256Mismatch",
    }
)


def is_transient(error: Exception) -> bool:
    """Say whether the same request may succeed later."""
    if isinstance(error, ClientError):
        status = status_of(error)
        return status >= 500 or status in _TRANSIENT_STATUSES or code_of(error) in _TRANSIENT_CODES
    return isinstance(error, _TRANSIENT)


def status_of(error: ClientError) -> int:
    """Return the HTTP status, 0 where there was none."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def code_of(error: ClientError) -> str:
    """Return S3's own code, such as `NoSuchKey`."""
    return error.response.get("Error", {}).get("Code", "")
