"""Names of faults of requests to remote storage, and whether another try may help."""

from typing import Any

from fsspec.exceptions import FSTimeoutError

from eve_vl.data.remote_stores import RangeIgnoredError

REPEATABLE_STATUS = (408, 425, 429)  # of 400 to 499, those that another try may mend
# classes of packages that may be absent
UNREACHABLE = (
    "ClientConnectorError",
    "ConnectionTimeoutError",
    "EndpointConnectionError",
    "ConnectTimeoutError",
)
CERTIFICATE = ("ClientSSLError", "SSLError")
ADDRESS = ("InvalidURL", "RedirectClientError", "ParamValidationError")


def root_fault(error: BaseException) -> BaseException:
    """Return the error that fsspec has wrapped in a more general one, else the error itself."""
    cause = error.__cause__
    if cause is None:
        return error
    # fsspec raises FileNotFoundError for any fault of asking a web server for a size
    is_wrapper = isinstance(error, (FileNotFoundError, FSTimeoutError))
    return cause if is_wrapper or _s3_answer(cause) else error


def reason_of(error: BaseException) -> str:
    """Return the first two lines of an error as one, or the name of its class."""
    if _is_no_http(error):
        message = getattr(error.__cause__, "message", "")
        return f"its answer is no valid HTTP: {' '.join(message.splitlines()[:1])}"
    text = " ".join(str(error).splitlines()[:2])
    return text or type(error).__name__


def is_unreachable(error: BaseException) -> bool:
    """Return whether no connection to a server was made."""
    return _has_class(error, UNREACHABLE)


def lasting_problem(error: BaseException, num_tries: int) -> str | None:
    """Return the message of a fault that another try does not mend, else None.

    num_tries: how often it came.
    """
    reason = reason_of(error)
    status = getattr(error, "status", None)
    status = _s3_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", status)
    # no package of this protocol, or no such protocol
    if isinstance(error, ImportError) or type(error) is ValueError:
        return (
            f"cannot be read ({reason}); pip install 'eve-vl[remote]' for s3://, gs:// and https://"
        )
    if "NoSuchBucket" in reason:
        return "no such bucket; check its name and the address of the store"
    # 416: it has become shorter
    if isinstance(error, FileNotFoundError) or status in (404, 416):
        return (
            "no such file, or it has changed since it was indexed; check the name, or start again"
            " to index it again"
        )
    is_refused = isinstance(error, PermissionError) or "Credential" in type(error).__name__
    if is_refused or status in (401, 403):
        return f"access was refused ({reason}); check the credentials and their rights"
    if _has_class(error, ("TooManyRedirects",)):
        return "the server redirects in a loop; check the address"
    if _has_class(error, CERTIFICATE):
        return f"the certificate of the server is not valid ({reason})"
    is_lasting_status = status is not None and 300 <= status < 500
    if status in REPEATABLE_STATUS or _is_no_http(error):  # aiohttp gives it the status 400
        is_lasting_status = False
    if _has_class(error, ADDRESS) or is_lasting_status:
        return f"the server cannot answer the request ({reason}); check the address"
    # a cache between may answer with the whole file once
    if isinstance(error, RangeIgnoredError) and num_tries > 1:
        return (
            f"the server does not support byte ranges ({reason}); use one that does, such as"
            " nginx, or copy it to a disk"
        )
    return None


def _is_no_http(error: BaseException) -> bool:
    """Return whether aiohttp could not parse an answer; a cut body is another error."""
    cause = error.__cause__
    is_parser_error = cause is not None and _has_class(cause, ("HttpProcessingError",))
    return is_parser_error and _has_class(error, ("ClientResponseError",))


def _s3_answer(error: BaseException) -> dict[str, Any]:
    """Return the answer of an S3 server in an error of botocore; empty for others."""
    return getattr(error, "response", None) or {}


def _has_class(error: BaseException, names: tuple[str, ...]) -> bool:
    return any(cls.__name__ in names for cls in type(error).__mro__)
