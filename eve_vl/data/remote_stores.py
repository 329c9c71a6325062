"""Stores of all protocols through fsspec, with timeouts."""

from typing import Any

import fsspec
from fsspec.config import conf

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0  # between two bytes
TOTAL_SECONDS = 300.0  # of a request, which a trickle of bytes would prolong for ever


class RangeIgnoredError(OSError):
    """An answer that is not the requested range of bytes."""


def store() -> Any:
    """Return the file system of all protocols; fsspec keeps one in each process."""
    return fsspec.filesystem(
        "generic", default_method="options", storage_options=_options_by_protocol()
    )


def _options_by_protocol() -> dict[str, dict[str, Any]]:
    """Return the options of stores; those in the user's fsspec configuration come first.

    Listings are not cached: they would hide that a file has changed.
    """
    # remote_requests.py repeats; each of its tries would become five
    config_kwargs = {"retries": {"max_attempts": 0}, "connect_timeout": CONNECT_SECONDS}
    s3_options = {"config_kwargs": config_kwargs | _configured("s3", "config_kwargs")}
    options: dict[str, dict[str, Any]] = {"s3": s3_options}
    try:
        import aiohttp
    except ImportError:  # the protocols that need it say so
        return options

    timeout = aiohttp.ClientTimeout(
        total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
    )
    session = {"timeout": timeout, "raise_for_status": _require_range}
    for protocol in ("http", "https"):
        client_kwargs = session | _configured(protocol, "client_kwargs")
        options[protocol] = {"client_kwargs": client_kwargs}
    for protocol in ("gs", "gcs"):
        options[protocol] = {"requests_timeout": timeout}
    for values in options.values():
        values["use_listings_cache"] = False
    return options


def _configured(protocol: str, option: str) -> dict[str, Any]:
    """Return a user's values, which fsspec would replace by ours as a whole."""
    return conf.get(protocol, {}).get(option, {})


async def _require_range(answer: Any) -> None:
    """Raise OSError for an answer of a web server with other bytes than the requested ones."""
    requested = answer.request_info.headers.get("Range", "").replace("=", " ")
    if not requested or answer.status >= 400:
        return
    sent = answer.headers.get("Content-Range", "")
    if answer.status == 206 and sent.partition("/")[0] == requested:
        return
    answer.close()
    if answer.status != 206:
        raise RangeIgnoredError(f"status {answer.status} instead of 206")
    if not sent:
        raise RangeIgnoredError("no Content-Range in its answer")
    raise OSError(f"{sent} came instead of {requested}")
