"""A server: every call of `Eve` and the search in an index as JSON over HTTP.

Here: its limits, and the one-line errors that enforce them. Imports no torch, because the command line shows the limits.
"""

from collections.abc import Mapping
from dataclasses import fields

from eve_vl.utils.errors import UserError, printable, shortened
from eve_vl.utils.frozen import Frozen

MB = 2**20
DECODERS = 2  # threads that decode images of requests
MAX_LENGTH = 10_000  # characters of a text, numbers in a list
MAX_VALUES = 50_000  # in a body
MOST_RESULTS = 2_000  # hits, pairs or prompts over all rows of a request: each takes time of the one computing thread
MOST_HITS = 1_000
MOST_RERANKED = 100  # of a search: the matching head computes each pair


class Limits(Frozen):
    """Limits of a server; each is a flag of `eve serve`.

    Raises UserError unless all are positive.
    """

    queue: int = 256
    """Requests that wait or are computed; the server answers further ones with 503 and Retry-After."""
    batch: int = 64
    """Images or texts to compute at a time, from requests that wait for the same call."""
    memory_mb: int = 256
    """Megabytes that bodies, decoded images and results of all requests may hold together; further requests get 503."""
    body_mb: int = 16
    """Megabytes of a request's body."""
    items: int = 64
    """Images or texts in a list."""
    pixels: int = 32_000_000
    """Pixels of all images of a request together, counted before decoding."""
    body_seconds: float = 20.0
    """Seconds for a client to send its body."""
    wait_seconds: float = 30.0
    """Seconds a request may wait before it is decoded or computed; then it gets 503."""

    def __post_init__(self):
        for each in fields(Limits):
            if not getattr(self, each.name) > 0:
                raise UserError(
                    f"--{each.name.replace('_', '-')}: {getattr(self, each.name)} was given, expected more than 0"
                )


class RequestRefusedError(Exception):
    """An HTTP status with one line: the problem, the value given, the fix."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        self.status, self.message, self.headers = status, printable(shortened(message)), headers
        super().__init__(self.message)


def busy(why: str, seconds: int = 1) -> RequestRefusedError:
    """Return a 503 for a request that may be sent again."""
    return RequestRefusedError(
        503, f"{why}; send it again in {seconds} s", {"retry-after": str(seconds)}
    )
